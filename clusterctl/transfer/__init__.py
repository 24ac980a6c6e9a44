"""Models and images on every host: moved in a chain, proved equal, listed, removed."""
