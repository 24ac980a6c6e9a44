// The CPU's kernels, as cpu.py calls them: fp32 inside, one rounding at the end. `bf16`: the
// tensors are bfloat16, not float32. Every tensor is contiguous.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

const int64_t kWorthSharing = 1 << 14;  // elements; below, waking a second thread takes longer
const int64_t kLanes = 16;
const int64_t kLongest = 512;         // elements of a head; cpu.py's too
const int64_t kLine = 64;             // bytes of a cache line
const int64_t kChunkBytes = 1 << 19;  // of a product's inputs: a quarter of a core's cache

// The compiler lowers these to what the machine has.
typedef float Vec __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef int32_t Whole __attribute__((vector_size(64)));
typedef float LooseVec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t LooseHalves __attribute__((vector_size(32), aligned(2), may_alias));

struct bfloat16 {
  uint16_t bits;
};

inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
inline Vec load(const bfloat16* from) {
  const LooseHalves halves = *reinterpret_cast<const LooseHalves*>(from);
#ifdef __AVX512F__
  return (Vec)((Bits)_mm512_cvtepu16_epi32((__m256i)halves) << 16);
#else
  return (Vec)(__builtin_convertvector(halves, Bits) << 16);
#endif
}
inline void store(float* to, Vec x) { *reinterpret_cast<LooseVec*>(to) = x; }
inline void store(bfloat16* to, Vec x) {  // to nearest, ties to even; NaN stays NaN
  const Bits bits = (Bits)x;
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits kept = (Bits)(x == x);
  const Bits result = (rounded & kept) | (0x7fc0 & ~kept);
#ifdef __AVX512F__
  *reinterpret_cast<LooseHalves*>(to) = (LooseHalves)_mm512_cvtepi32_epi16((__m512i)result);
#else
  *reinterpret_cast<LooseHalves*>(to) = __builtin_convertvector(result, LooseHalves);
#endif
}

template <typename T>
inline Vec load(const T* from, int64_t count) {  // the rest is 0
  if (count == kLanes) return load(from);
  T some[kLanes] = {};
  std::copy_n(from, count, some);
  return load(some);
}
template <typename T>
inline void store(T* to, Vec x, int64_t count) {
  if (count == kLanes) return store(to, x);
  T all[kLanes];
  store(all, x);
  std::copy_n(all, count, to);
}

inline float sum(Vec x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)x);
#else
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
#endif
}

// `each(first element, how many)` of pieces that a Vec holds.
template <typename Each>
inline void pieces(int64_t size, Each each) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) each(i, kLanes);
  if (i < size) each(i, size - i);
}

// e^x within 2 units in the last place: Cephes' expf, its range cut to where the result is a
// normal number.
inline Vec exponential(Vec x) {
  x = x < -87.0f ? Vec{} - 87.0f : x;
  x = x > 88.0f ? Vec{} + 88.0f : x;
  const float shift = 12582912;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec whole = (x * 1.44269504f + shift) - shift;
  const Vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vec p = Vec{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
    p = p * r + c;
  const Vec power = (Vec)((__builtin_convertvector(whole, Whole) + 127) << 23);
  return (p * r * r + r + 1) * power;
}

template <typename T>
void add_rms_norm(const T* x, const T* delta, const T* weight, T* normed, T* total, int64_t rows,
                  int64_t size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > kWorthSharing)
  for (int64_t row = 0; row < rows; ++row) {
    const T *one = x + row * size, *other = delta + row * size;
    T *both = total + row * size, *to = normed + row * size;
    Vec squares = {};
    pieces(size, [&](int64_t i, int64_t n) {
      if (delta) store(both + i, load(one + i, n) + load(other + i, n), n);
      const Vec rounded = load((delta ? both : one) + i, n);
      squares += rounded * rounded;
    });
    const float scale = 1 / std::sqrt(sum(squares) / size + eps);
    pieces(size, [&](int64_t i, int64_t n) {
      store(to + i, load((delta ? both : one) + i, n) * scale * load(weight + i, n), n);
    });
  }
}

template <typename T>
void silu_gate(const T* gate_and_up, T* out, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > kWorthSharing)
  for (int64_t row = 0; row < rows; ++row) {
    const T* gate = gate_and_up + row * 2 * size;
    pieces(size, [&](int64_t i, int64_t n) {
      const Vec x = load(gate + i, n);
      store(out + row * size + i, x / (1 + exponential(-x)) * load(gate + size + i, n), n);
    });
  }
}

// A head's norm, then the rotation of its first 2 * half elements: i pairs with i + half.
template <typename T>
void turn(T* head, int64_t dim, const float* norm, float eps, const float* cos, const float* sin,
          int64_t half) {
  if (norm != nullptr) {
    Vec squares = {};
    pieces(dim, [&](int64_t i, int64_t n) { squares += load(head + i, n) * load(head + i, n); });
    const float scale = 1 / std::sqrt(sum(squares) / dim + eps);
    pieces(dim, [&](int64_t i, int64_t n) {
      store(head + i, load(head + i, n) * scale * load(norm + i, n), n);
    });
  }
  pieces(half, [&](int64_t i, int64_t n) {
    const Vec first = load(head + i, n), second = load(head + i + half, n);
    const Vec c = load(cos + i, n), s = load(sin + i, n);
    store(head + i, first * c - second * s, n);
    store(head + i + half, second * c + first * s, n);
  });
}

// Scores become e^(score - the largest); returns their sum. There is room for kLanes more.
float softmax(float* scores, int64_t count, float softcap) {
  for (int64_t t = 0; softcap > 0 && t < count; ++t)
    scores[t] = softcap * std::tanh(scores[t] / softcap);
  float most = scores[0];
#pragma omp simd reduction(max : most)
  for (int64_t t = 0; t < count; ++t) most = std::max(most, scores[t]);
  std::fill_n(scores + count, kLanes, most - 100);  // to e^-87, which is nothing beside 1
  Vec total = {};
  for (int64_t t = 0; t < count; t += kLanes) {
    const Vec share = exponential(load(scores + t) - most);
    store(scores + t, share);
    total += share;
  }
  return sum(total);
}

struct Sizes {  // cpu.py's Sizes
  int64_t queries, kv, dim, block_size;
};

template <typename T>
void turn_and_store(T* heads, const int64_t* positions, const int64_t* slots, T* cache,
                    int64_t num_slots, const float* cos, const float* sin, int64_t half,
                    const float* query_norm, const float* key_norm, float eps, int64_t tokens,
                    Sizes is, int threads) {
  const int64_t stored = is.kv * is.dim;
#pragma omp parallel for num_threads(threads) if (tokens * is.queries * is.dim > kWorthSharing)
  for (int64_t token = 0; token < tokens; ++token) {
    T* row = heads + token * (is.queries + 2 * is.kv) * is.dim;
    for (int64_t head = 0; head < is.queries + is.kv && (half || query_norm); ++head) {
      const float* norm = head < is.queries ? query_norm : key_norm;
      const int64_t angle = positions[token] * half;
      turn(row + head * is.dim, is.dim, norm, eps, cos + angle, sin + angle, half);
    }
    const T* keys = row + is.queries * is.dim;
    std::copy_n(keys, stored, cache + slots[token] * stored);
    std::copy_n(keys + stored, stored, cache + (num_slots + slots[token]) * stored);
  }
}

// One new token a row: its queries against all of its past. `kDim`: the head size where the
// compiler knows it, else 0 and at most kLongest.
template <int64_t kDim, typename T>
void decode(const T* heads, const int64_t* positions, const int32_t* tables, int64_t width,
            const T* cache, int64_t num_slots, T* out, int64_t rows, Sizes is, int64_t window,
            float softcap, float scale, int threads) {
  const int64_t group = is.queries / is.kv, dim = kDim ? kDim : is.dim, stored = is.kv * dim;
  const bool share = rows * width * is.block_size * is.queries * dim > kWorthSharing;
#pragma omp parallel num_threads(threads) if (share)
  {
    Vec query[(kDim ? kDim : kLongest) / kLanes], mixed[(kDim ? kDim : kLongest) / kLanes];
    std::vector<float> scores;
#pragma omp for schedule(dynamic, is.kv)
    for (int64_t task = 0; task < rows * is.kv; ++task) {
      const int64_t row = task / is.kv, head = task % is.kv;
      const int64_t stop = positions[row] + 1;
      const int64_t start = window > 0 ? std::max<int64_t>(0, stop - window) : 0;
      const int64_t seen = stop - start;
      // `use(number, vector)` of each key (which: 0) or value (1) that is seen.
      const auto past = [&](int64_t which, auto use) {
        for (int64_t block = start / is.block_size; block * is.block_size < stop; ++block) {
          const int64_t first = block * is.block_size, last = std::min(first + is.block_size, stop);
          const int32_t* table = tables + row * width + block;
          const int64_t slot = which * num_slots + table[0] * is.block_size;
          const int64_t further = last < stop ? (table[1] - table[0]) * is.block_size * stored : 0;
          for (int64_t place = std::max(first, start); place < last; ++place) {
            const T* one = cache + (slot + place - first) * stored + head * dim;
            for (int64_t i = 0; i < dim && further; i += kLine / int64_t(sizeof(T)))
              __builtin_prefetch(one + further + i);
            use(place - start, one);
          }
        }
      };
      scores.resize(seen + kLanes);
      for (int64_t g = 0; g < group; ++g) {
        const T* asked = heads + (row * (is.queries + 2 * is.kv) + head * group + g) * dim;
        pieces(dim, [&](int64_t i, int64_t n) { query[i / kLanes] = load(asked + i, n) * scale; });
        past(0, [&](int64_t t, const T* key) {
          Vec products = {};
          pieces(dim,
                 [&](int64_t i, int64_t n) { products += query[i / kLanes] * load(key + i, n); });
          scores[t] = sum(products);
        });
        const float total = softmax(scores.data(), seen, softcap);
        pieces(dim, [&](int64_t i, int64_t) { mixed[i / kLanes] = Vec{}; });
        past(1, [&](int64_t t, const T* value) {
          pieces(dim, [&](int64_t i, int64_t n) {
            mixed[i / kLanes] += scores[t] * load(value + i, n);
          });
        });
        T* to = out + (row * is.queries + head * group + g) * dim;
        pieces(dim, [&](int64_t i, int64_t n) { store(to + i, mixed[i / kLanes] / total, n); });
      }
    }
  }
}

// Fetches one block's share of the next panel, spread over the block's steps.
struct Ahead {
  const char* next;
  int64_t lines, lines_a_step;

  Ahead(const void* panel, int64_t bytes, int64_t block, int64_t blocks, int64_t steps) {
    const int64_t first = bytes / kLine * block / blocks;
    next = static_cast<const char*>(panel) + first * kLine;
    lines = panel ? bytes / kLine * (block + 1) / blocks - first : 0;
    lines_a_step = (lines + steps - 1) / steps;
  }
  void step() {
    for (int64_t i = 0; i < lines_a_step && lines > 0; ++i, --lines, next += kLine)
      __builtin_prefetch(next, 0, 2);
  }
};

// A block of at most kRows rows times a panel of kWide columns; `step` of `in` at a time.
struct Fma {  // a panel is [in][kWide]
  using T = float;
  static const int64_t kRows = 8, kWide = 48, kStep = 8;

  template <int kCount>
  static void rows_of(const T* inputs, const T* panel, int64_t in, float (*sums)[kWide],
                      Ahead ahead) {
    Vec total[kCount][3] = {};
    for (int64_t k = 0; k < in; ++k, panel += kWide) {
      if (k % kStep == 0) ahead.step();
      const Vec columns[3] = {load(panel), load(panel + kLanes), load(panel + 2 * kLanes)};
#pragma GCC unroll 8
      for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 3
        for (int v = 0; v < 3; ++v) total[r][v] += inputs[r * in + k] * columns[v];
    }
    for (int r = 0; r < kCount; ++r)
      for (int v = 0; v < 3; ++v) store(sums[r] + v * kLanes, total[r][v]);
  }

  void block(int64_t rows, const T* inputs, const T* panel, int64_t in, float (*sums)[kWide],
             Ahead ahead) {
    static constexpr decltype(&rows_of<1>) kernels[] = {rows_of<1>, rows_of<2>, rows_of<3>,
                                                        rows_of<4>, rows_of<5>, rows_of<6>,
                                                        rows_of<7>, rows_of<8>};
    kernels[rows - 1](inputs, panel, in, sums, ahead);
  }
};

#ifdef TILES
struct Tiles {  // a panel is [in / 32][2 halves of the columns][16 pairs of `in`][16 columns][2]
  using T = bfloat16;
  static const int64_t kRows = 32, kWide = 32, kStep = 32;
  int64_t configured = 0;

  ~Tiles() {
    if (configured) _tile_release();
  }

  void configure(int64_t rows) {  // tiles 0 to 3 are sums, 4 and 5 inputs, 6 and 7 weights
    struct alignas(64) {
      uint8_t palette = 1, start = 0, unused[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const int64_t upper = std::min<int64_t>(rows, 16), lower = std::max<int64_t>(rows - 16, 1);
    for (int tile = 0; tile < 8; ++tile) {
      config.bytes[tile] = 64;
      config.rows[tile] = tile > 5 ? 16 : tile == 2 || tile == 3 || tile == 5 ? lower : upper;
    }
    _tile_loadconfig(&config);
    configured = rows;
  }

  void block(int64_t rows, const T* inputs, const T* panel, int64_t in, float (*sums)[kWide],
             Ahead ahead) {
    if (rows != configured) configure(rows);
    const T* lower = inputs + 16 * in;
    const bool both = rows > 16;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < in; k += kStep, panel += kWide * kStep) {
      ahead.step();
      _tile_loadd(6, panel, 64);
      _tile_loadd(7, panel + 16 * kStep, 64);
      _tile_loadd(4, inputs + k, in * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (!both) continue;
      _tile_loadd(5, lower + k, in * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums[0], kWide * 4);
    _tile_stored(1, sums[0] + 16, kWide * 4);
    if (!both) return;
    _tile_stored(2, sums[16], kWide * 4);
    _tile_stored(3, sums[16] + 16, kWide * 4);
  }
};
#endif

// inputs [rows, in] @ weight.T + bias for a weight [columns, in] in panels: each thread has a run
// of them, and reads a panel from memory once for a chunk of rows that its cache holds.
template <typename Kernel, typename T = typename Kernel::T>
void product(const T* inputs, const T* packed, const T* bias, T* out, int64_t rows, int64_t in,
             int64_t columns, int threads) {
  const int64_t kRows = Kernel::kRows, kWide = Kernel::kWide, size = in * kWide;
  const int64_t panels = (columns + kWide - 1) / kWide;
  const int64_t chunk = std::max(kRows, kChunkBytes / (in * int64_t(sizeof(T))) / kRows * kRows);
#pragma omp parallel num_threads(threads)
  {
    Kernel kernel;
    alignas(64) float sums[kRows][kWide];
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t begin = panels * me / all, end = panels * (me + 1) / all;
    for (int64_t top = 0; top < rows; top += chunk) {
      const int64_t bottom = std::min(top + chunk, rows);
      const int64_t blocks = (bottom - top + kRows - 1) / kRows;
      for (int64_t panel = begin; panel < end; ++panel) {
        const T* weights = packed + panel * size;
        const T* again = bottom < rows ? packed + begin * size : nullptr;
        const T* next = panel + 1 < end ? weights + size : again;
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t first = top + block * kRows, count = std::min(kRows, bottom - first);
          const Ahead ahead(next, size * sizeof(T), block, blocks, in / Kernel::kStep);
          kernel.block(count, inputs + first * in, weights, in, sums, ahead);
          for (int64_t row = 0; row < count; ++row)
            pieces(std::min(kWide, columns - panel * kWide), [&](int64_t i, int64_t n) {
              const int64_t column = panel * kWide + i;
              const Vec sum =
                  bias ? load(sums[row] + i) + load(bias + column, n) : load(sums[row] + i);
              store(out + (first + row) * columns + column, sum, n);
            });
        }
      }
    }
  }
}

// `call` with a null pointer to what the tensors hold.
template <typename Call>
void dispatch(int bf16, Call call) {
  bf16 ? call(static_cast<bfloat16*>(nullptr)) : call(static_cast<float*>(nullptr));
}

}  // namespace

#define OF(pointer) static_cast<decltype(t)>(pointer)

extern "C" {

// Whether `product` can be called: float has its vectors, bfloat16 its tiles, and the kernel lets
// this process use them.
int engine_multiplies(int bf16) {
#ifdef TILES
  const int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (bf16) return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#endif
#ifdef __AVX512F__
  return !bf16;
#else
  return 0;
#endif
}

void engine_product(int bf16, void* inputs, void* packed, void* bias, void* out, int64_t rows,
                    int64_t in, int64_t columns, int threads) {
#ifdef TILES
  using B = bfloat16;
  if (bf16)
    return product<Tiles>((B*)inputs, (B*)packed, (B*)bias, (B*)out, rows, in, columns, threads);
#endif
  using F = float;
  product<Fma>((F*)inputs, (F*)packed, (F*)bias, (F*)out, rows, in, columns, threads);
}

void engine_add_rms_norm(int bf16, void* x, void* delta, void* weight, void* normed, void* total,
                         int64_t rows, int64_t size, float eps, int threads) {
  dispatch(bf16, [&](auto* t) {
    add_rms_norm(OF(x), OF(delta), OF(weight), OF(normed), OF(total), rows, size, eps, threads);
  });
}

void engine_silu_gate(int bf16, void* gate_and_up, void* out, int64_t rows, int64_t size,
                      int threads) {
  dispatch(bf16, [&](auto* t) { silu_gate(OF(gate_and_up), OF(out), rows, size, threads); });
}

void engine_turn_and_store(int bf16, void* heads, int64_t* positions, int64_t* slots, void* cache,
                           int64_t num_slots, float* cos, float* sin, int64_t half,
                           float* query_norm, float* key_norm, float eps, int64_t tokens, Sizes is,
                           int threads) {
  dispatch(bf16, [&](auto* t) {
    turn_and_store(OF(heads), positions, slots, OF(cache), num_slots, cos, sin, half, query_norm,
                   key_norm, eps, tokens, is, threads);
  });
}

void engine_decode(int bf16, void* heads, int64_t* positions, int32_t* tables, int64_t width,
                   void* cache, int64_t num_slots, void* out, int64_t rows, Sizes is,
                   int64_t window, float softcap, float scale, int threads) {
  dispatch(bf16, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const auto run = is.dim == 64 ? decode<64, T> : is.dim == 128 ? decode<128, T> : decode<0, T>;
    run(OF(heads), positions, tables, width, OF(cache), num_slots, OF(out), rows, is, window,
        softcap, scale, threads);
  });
}
}
