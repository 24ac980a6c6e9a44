// The CPU's small kernels, as cpu.py calls them: loops over rows, fp32 inside, one rounding at
// the end. `bf16`: the tensors are bfloat16, not float32. Every tensor is contiguous.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

const int64_t kWorthSharing = 1 << 14;  // elements; below, waking a second thread takes longer

struct bfloat16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(bfloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

template <typename T>
inline T narrow(float x) { return static_cast<T>(x); }
template <>
inline bfloat16 narrow<bfloat16>(float x) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x == x ? rounded : 0x7fc0)};
}

// e^x within 2 units in the last place, in a form that compilers vectorise: Cephes' expf, its
// range cut to where the result is a normal number.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float whole = std::floor(x * 1.44269504f + 0.5f);
  const float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
    p = p * r + c;
  const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return (p * r * r + r + 1) * power;
}

template <typename T>
void add_rms_norm(const T* x, const T* delta, const T* weight, T* normed, T* total, int64_t rows,
                  int64_t size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > kWorthSharing)
  for (int64_t row = 0; row < rows; ++row) {
    const T* sum = x + row * size;
    if (delta != nullptr) {
      const T* add = delta + row * size;
      T* to = total + row * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) to[i] = narrow<T>(wide(sum[i]) + wide(add[i]));
      sum = to;
    }
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; ++i) squares += wide(sum[i]) * wide(sum[i]);
    const float scale = 1 / std::sqrt(squares / size + eps);
    T* to = normed + row * size;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) to[i] = narrow<T>(wide(sum[i]) * scale * wide(weight[i]));
  }
}

template <typename T>
void silu_gate(const T* gate_and_up, T* out, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > kWorthSharing)
  for (int64_t row = 0; row < rows; ++row) {
    const T* gate = gate_and_up + row * 2 * size;
    T* to = out + row * size;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float x = wide(gate[i]);
      to[i] = narrow<T>(x / (1 + exponential(-x)) * wide(gate[size + i]));
    }
  }
}

// A head's norm, then the rotation of its first 2 * half elements: i pairs with i + half.
template <typename T>
void turn(T* head, int64_t dim, const float* norm, float eps, const float* cos, const float* sin,
          int64_t half) {
  if (norm != nullptr) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < dim; ++i) squares += wide(head[i]) * wide(head[i]);
    const float scale = 1 / std::sqrt(squares / dim + eps);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) head[i] = narrow<T>(wide(head[i]) * scale * norm[i]);
  }
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float first = wide(head[i]), second = wide(head[i + half]);
    head[i] = narrow<T>(first * cos[i] - second * sin[i]);
    head[i + half] = narrow<T>(second * cos[i] + first * sin[i]);
  }
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

// One new token a row: its queries against all of its past, a KV head and its group at a time.
template <typename T>
void decode(const T* heads, const int64_t* positions, const int32_t* tables, int64_t width,
            const T* cache, int64_t num_slots, T* out, int64_t rows, Sizes is, int64_t window,
            float softcap, float scale, int threads) {
  const int64_t group = is.queries / is.kv, dim = is.dim, stored = is.kv * dim;
#pragma omp parallel num_threads(threads) if (rows * width * is.block_size * is.queries * is.dim > kWorthSharing)
  {
    std::vector<float> query(group * dim), mixed(group * dim), one(dim), scores;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < rows * is.kv; ++task) {
      const int64_t row = task / is.kv, head = task % is.kv;
      const int64_t stop = positions[row] + 1;
      const int64_t start = window > 0 ? std::max<int64_t>(0, stop - window) : 0;
      const int64_t seen = stop - start;
      const auto past = [&](int64_t place, int64_t which) {
        const int64_t block = tables[row * width + place / is.block_size];
        const int64_t slot = block * is.block_size + place % is.block_size;
        const T* from = cache + (which * num_slots + slot) * stored + head * dim;
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) one[i] = wide(from[i]);
      };
      const T* asked = heads + (row * (is.queries + 2 * is.kv) + head * group) * dim;
      for (int64_t i = 0; i < group * dim; ++i) query[i] = wide(asked[i]) * scale;
      scores.resize(group * seen);
      for (int64_t t = 0; t < seen; ++t) {
        past(start + t, 0);
        for (int64_t g = 0; g < group; ++g) {
          const float* q = query.data() + g * dim;
          float score = 0;
#pragma omp simd reduction(+ : score)
          for (int64_t i = 0; i < dim; ++i) score += q[i] * one[i];
          scores[g * seen + t] = softcap > 0 ? softcap * std::tanh(score / softcap) : score;
        }
      }
      for (int64_t g = 0; g < group; ++g) {
        float* s = scores.data() + g * seen;
        const float most = *std::max_element(s, s + seen);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < seen; ++t) sum += s[t] = exponential(s[t] - most);
#pragma omp simd
        for (int64_t t = 0; t < seen; ++t) s[t] /= sum;
      }
      std::fill(mixed.begin(), mixed.end(), 0.0f);
      for (int64_t t = 0; t < seen; ++t) {
        past(start + t, 1);
        for (int64_t g = 0; g < group; ++g) {
          const float share = scores[g * seen + t];
          float* m = mixed.data() + g * dim;
#pragma omp simd
          for (int64_t i = 0; i < dim; ++i) m[i] += share * one[i];
        }
      }
      T* to = out + (row * is.queries + head * group) * dim;
      for (int64_t i = 0; i < group * dim; ++i) to[i] = narrow<T>(mixed[i]);
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
    decode(OF(heads), positions, tables, width, OF(cache), num_slots, OF(out), rows, is, window,
           softcap, scale, threads);
  });
}
}
