// From gradients to weights: projection, norms and Adam, each in one pass over the rows.
#include <cmath>

#include "vectors.hpp"

namespace sae {

SAE_CLONES void project(const float* weight_FD, i64 width, i64 first, i64 last, float* gradient_FD,
                        double* square_F) {
  for (i64 f = first; f < last; ++f) {
    float* gradient = gradient_FD + f * width;
    if (weight_FD) {
      const float* weight = weight_FD + f * width;
      const float along = dot(gradient, weight, width);
      for (i64 i = 0; i < width; ++i) gradient[i] -= along * weight[i];
    }
    square_F[f] = dot(gradient, gradient, width);
  }
}

SAE_CLONES bool adam(const Adam& a, i64 width, i64 first, i64 last, const float* rate_F,
                     const float* root_F, const float* gradient_FD, float* weight_FD, float* mean_FD,
                     float* square_FD) {
  bool finite = true;
  const float keep1 = 1.0f - a.beta1, keep2 = 1.0f - a.beta2;
  for (i64 f = first; f < last; ++f) {
    const float rate = rate_F[f], root = root_F[f];
    if (rate == 0.0f) continue;
    const float* gradient = gradient_FD + f * width;
    float *weight = weight_FD + f * width, *mean = mean_FD + f * width, *square = square_FD + f * width;
    for (i64 i = 0; i < width; ++i) {
      const float g = gradient[i] * a.clip;
      const float m = mean[i] + keep1 * (g - mean[i]);
      const float v = a.beta2 * square[i] + keep2 * g * g;
      mean[i] = m;
      square[i] = v;
      weight[i] -= rate * m / (std::sqrt(v) * root + a.epsilon);
    }
    const float norm2 = dot(weight, weight, width);
    // A square past the largest float is as bad as a NaN: the next product would overflow.
    finite &= norm2 <= 3.0e38f;
    if (a.unit_rows) {
      const float norm = std::sqrt(norm2);
      const float shrink = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
      for (i64 i = 0; i < width; ++i) weight[i] *= shrink;
    }
  }
  return finite;
}

}  // namespace sae
