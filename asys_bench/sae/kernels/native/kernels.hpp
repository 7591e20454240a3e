// The kernels of a sparse SAE step. Plain pointers, row-major, float32; the caller has checked sizes.
//
// B rows of a batch, D their width, F features, N (row, feature) pairs.
//   CSR           offset_B[B + 1], feature_N ascending within a row, value_N
//   feature-major offset_F[F + 1], order_N (places in the CSR), row_N (their rows)
// Every function works on a half-open range of rows or features and writes nothing outside it, so
// that threads share a call by splitting the range; a result never depends on the split.
#pragma once

#include <cstdint>

namespace sae {

using i32 = std::int32_t;
using i64 = std::int64_t;
using u16 = std::uint16_t;

// One build runs everywhere and uses the widest vectors of the machine it finds itself on.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SAE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SAE_CLONES
#endif

// Of rows that were rounded to bfloat16: bounds on each row's norm, and on the norm of what rounding took.
struct Rounded {
  const float* norm;
  const float* miss;
};

// The encoder's product of one block of rows, and what turns it into pre-activations.
struct Product {
  const float* exact;   // [rows, F] float32, or null
  const u16* rough;     // [rows, F] bfloat16, or null
  const float* bias_F;
  i64 rows, features;
  // rough only: where exact values come from, x_b . W_f + bias_f, and how far rough ones may be from them.
  const float* input_BD;
  const float* weight_FD;
  i64 width;
  Rounded input, weight;
};

// out[r] = the bfloat16 nearest to source[r], for rows [first, last), with the bounds of `Rounded`.
void roughen(const float* source, i64 width, i64 first, i64 last, u16* out, float* norm, float* miss);

// The k largest pre-activations of each row: feature[rows * k] ascending within a row, value[rows * k].
void top_k(const Product& product, i64 k, i32* feature, float* value);

// All pairs with pre > floor_F[f]; count[row] of them in each row. Returns how many; the outputs
// must have room for rows * features.
i64 above(const Product& product, const float* floor_F, i32* count, i32* feature, float* value);

// Per row b: e = sum_j value_j W[f_j] - target_b, error_b = |e|^2, gradient_b = scale_b e,
// and code_gradient_j = gradient_b . W[f_j].
struct Decoder {
  const i32* offset_B;
  const i32* feature_N;
  const float* value_N;
  const float* weight_FD;
  const float* target_BD;
  const float* scale_B;
  i64 width;
};
void reconstruct(const Decoder& decoder, i64 first, i64 last, float* error_B, float* gradient_BD,
                 float* code_gradient_N);

// The same for nested prefixes of the features (Matryoshka), M = levels, widths ascending:
// e_m decodes the features below widths[m]; error[m, b] = |e_m|^2;
// gradient[m, b] = scale_b sum over m' >= m of e_m'; a feature's code gradient uses its own level's.
void reconstruct_nested(const Decoder& decoder, const i32* widths, i64 levels, i64 batch, i64 first,
                        i64 last, float* error_MB, float* gradient_MBD, float* code_gradient_N);

// Counting sort of the pairs by feature, stable.
void group(const i32* offset_B, const i32* feature_N, i64 batch, i64 features, i32* offset_F,
           i32* order_N, i32* row_N);

// out[f] = sum over f's pairs of coefficient rows[row + shift_F[f]]; sum_F[f] = sum of coefficients.
struct FeatureMajor {
  const i32* offset_F;
  const i32* order_N;
  const i32* row_N;
  const i32* shift_F;  // or null
};
void accumulate(const FeatureMajor& groups, const float* coefficient_N, const float* rows_BD,
                i64 width, i64 first, i64 last, float* out_FD, float* sum_F);

// out[b] = (table[slot[b]] - center) * scale; slot null: b itself.
void take(const float* table, const i64* slot, const float* center_D, const float* scale_D,
          i64 width, i64 first, i64 last, float* out);

// gradient[f] -= (gradient[f] . weight[f]) weight[f] (weight null: unchanged); square[f] = |gradient[f]|^2.
void project(const float* weight_FD, i64 width, i64 first, i64 last, float* gradient_FD,
             double* square_F);

struct Adam {
  float beta1, beta2;
  float epsilon;
  float clip;          // gradients are multiplied by it
  bool unit_rows;      // bring rows back to norm 1
};
// One Adam step of rows [first, last). rate: lr / (1 - beta1^t), root: 1 / sqrt(1 - beta2^t), with the
// row's own steps t; rate 0: the row stays. Returns false when a new weight is not finite.
bool adam(const Adam& adam, i64 width, i64 first, i64 last, const float* rate_F, const float* root_F,
          const float* gradient_FD, float* weight_FD, float* mean_FD, float* square_FD);

}  // namespace sae
