/* The steps of an LSTM with projection on a CPU: recurrent product, gates, clips and projection of a whole packed batch,
   and the gates of a training step there and back.

   Sak et al. 2014 (arXiv:1402.1128), section 2. `lstmp_native.py` compiles this file for the machine's instructions, packs
   the weights and calls it; the input product of all steps is done before, in one matrix product.

   Weights come in blocks of 64 columns that lie side by side for each of the K inputs: [block][K][64]. In the recurrent
   ones a block is the gates i, f, g, o of the same 16 cells, so that a cell is done while its gates are in registers. bf16
   weights hold the inputs in pairs, [block][K / 2][64][2], as the machine's bf16 products want them.

   Letters: n rows alive at a step, N positions of all steps, D cells and P outputs, both multiples of 16. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16 /* floats of a register */
#define PANEL 6  /* rows whose sums stay in registers */
#elif defined(__AVX2__)
#define WIDTH 8
#define PANEL 3
#else
#define WIDTH 4
#define PANEL 3
#endif
#define BLOCK 64
#define GROUP 16   /* cells of a block */
#define CHUNK 1024 /* cells whose weights of a block, 256 KB, stay in the second cache from one panel to the next */
#define AHEAD 12288 /* bytes of weights to ask for early; a quarter faster than none where they come from memory */
#define FAR 16777216 /* bytes of weights that come from memory at each step */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

/* What a call works on. */
typedef struct {
  const void *const *inputs;  /* (N,) where each input product with bias (4 D) lies, gates i f g o; bf16 in a bf16 run */
  const int64_t *batch_sizes; /* (T,) rows alive at each step, never rising */
  int64_t steps, cells, size;
  const void *recurrent;      /* (4 D, P) in blocks */
  const void *projection;     /* (P, D) in blocks, or 0: outputs are the cells', P = D */
  float cell_clip, proj_clip; /* 0 = none */
  const void *h;              /* (R, P) before step 0, bf16 in a bf16 run; 0 for zeros */
  float *c;                   /* (R, D) before step 0; becomes each row's last */
  void *m;                    /* (R, D) room for o tanh(c), bf16 in a bf16 run */
  float *outputs;             /* (N, P) */
  uint16_t *rounded;          /* (N, P) room for bf16 copies of the outputs; 0 in a float run */
} Run;

/* Vectors */

INLINE vec load(const float *at) { return *(const vec *)at; }
INLINE void store(float *at, vec value) { *(vec *)at = value; }
INLINE vec all(float value) { return value - (vec){0}; }
INLINE vec pick(ints where, vec yes, vec no) { return (vec)((where & (ints)yes) | (~where & (ints)no)); }
/* The smaller or larger one of a and b; b where one of them is no number. */
#if WIDTH == 16
INLINE vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif WIDTH == 8
INLINE vec smaller(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
#else
INLINE vec smaller(vec a, vec b) { return pick(a < b, a, b); }
INLINE vec larger(vec a, vec b) { return pick(a > b, a, b); }
#endif
INLINE vec clip(vec x, float limit) { return larger(all(-limit), smaller(all(limit), x)); }

/* bf16 is the upper half of a float. */
INLINE float from_half(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}
INLINE vec load_half(const uint16_t *at) { return (vec)(__builtin_convertvector(*(const halves *)at, words) << 16); }
INLINE void store_half(uint16_t *at, vec value) { /* to nearest, ties to even */
  words bits = (words)value;
  *(halves *)at = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, halves);
}

/* e^x - 1 to about one unit in the last place, near 0 too, for |x| <= 87: 2^k (e^r - 1) + 2^k - 1 with |r| <= ln(2) / 2 */
INLINE vec expm1_of(vec x) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number, in its last bits */
  vec shifted = x * 1.44269504f + magic, whole = shifted - magic;
  vec power = (vec)(((ints)shifted - 0x4b400000 + 127) << 23);
  vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln(2) in two parts */
  vec sum = all(1.0f / 5040);
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  return power * (sum * r * r + r) + (power - 1.0f);
}
/* With e = expm1(-x) and t = expm1(-2 x), sigmoid(x) = 1 / (2 + e) and tanh(x) = -t / (2 + t). */
INLINE vec sigmoid_part(vec x) { return 2.0f + expm1_of(clip(-x, 87.0f)); }
INLINE vec tangent_part(vec x) { return expm1_of(clip(-2.0f * x, 40.0f)); }
INLINE vec sigmoid(vec x) { return 1.0f / sigmoid_part(x); }
INLINE vec tangent(vec x) {
  vec t = tangent_part(x);
  return -t / (2.0f + t);
}
/* sigmoid(gate) tanh(x) with one division */
INLINE vec gated_tangent(vec gate, vec x) {
  vec t = tangent_part(x);
  return -t / (sigmoid_part(gate) * (2.0f + t));
}
INLINE vec magnitude(vec x) { return (vec)((ints)x & 0x7fffffff); }

/* Products of up to PANEL rows with one register of columns of each quarter of a block. `rows` and `bf16` are constants
   wherever this is called: the compiler writes each case out. */

typedef vec Sums[PANEL][4];

/* Weights that are wanted next, where they come from memory. The panels of a block find it in the second cache, all but the
   first; so each of them asks for a part of the block behind, and memory is read while others multiply: a quarter faster at
   32 rows in float. Where weights lie in the caches, asking costs a tenth. */
typedef struct {
  const char *at;
  int64_t lines; /* of 64 bytes; at most two for each of a product's inputs */
  int far;       /* whether weights come from memory */
} Ahead;

/* The part for one of some panels, when `bytes` from `weights` on are at work and as many more may follow. */
INLINE Ahead ahead_of(const char *weights, int64_t bytes, int64_t panel, int64_t panels, int more, int far) {
  const int64_t lines = bytes / 64, from = lines * panel / panels, to = lines * (panel + 1) / panels;
  Ahead none = {0, 0, far}, ahead = {weights + bytes + 64 * from, to - from, far};
  return far && more && panels > 1 ? ahead : none;
}

INLINE void product(int rows, int bf16, const void *weights, const void *x, int64_t stride, int64_t inputs, Ahead ahead,
                    Sums sums) {
  const int copies = rows == 1 ? 4 : rows == 2 ? 2 : 1; /* enough sums to hide the latency of one */
  vec parts[4][PANEL][4];
  const int64_t count = bf16 ? inputs / 2 : inputs;
  for (int u = 0; u < copies; u++)
    for (int row = 0; row < rows; row++)
      for (int part = 0; part < 4; part++) parts[u][row][part] = all(0);
  for (int64_t k = 0; k < count; k += copies) {
    const float *w = (const float *)weights + k * BLOCK; /* a pair of bf16 is as long as a float */
    if (ahead.far)
#pragma GCC unroll 16
      for (int line = 0; line < 4 * copies; line++) __builtin_prefetch((const char *)w + AHEAD + 64 * line);
    if (!bf16 && rows > 2) { /* bf16 weights are half as large: it would cost more there than it gains */
      if (k < ahead.lines) __builtin_prefetch(ahead.at + 64 * k, 0, 2);
      if (k + count < ahead.lines) __builtin_prefetch(ahead.at + 64 * (k + count), 0, 2);
    }
#pragma GCC unroll 4
    for (int u = 0; u < copies; u++)
#pragma GCC unroll 6
      for (int row = 0; row < rows; row++) {
        const int64_t at = row * stride + k + u;
        const float value = bf16 ? 0 : ((const float *)x)[bf16 ? 0 : at];
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
          const float *column = w + u * BLOCK + part * GROUP;
          vec *sum = &parts[u][row][part];
          if (!bf16) {
            *sum += load(column) * value;
          } else {
#ifdef __AVX512BF16__
            __m512i pairs = _mm512_loadu_si512(column), pair = _mm512_set1_epi32(((const int32_t *)x)[at]);
            *sum = (vec)_mm512_dpbf16_ps((__m512)*sum, (__m512bh)pairs, (__m512bh)pair);
#else
            const uint16_t *pair = (const uint16_t *)x + 2 * at;
            words pairs = *(const words *)column;
            *sum += (vec)(pairs << 16) * from_half(pair[0]);
            *sum += (vec)(pairs & 0xffff0000) * from_half(pair[1]);
#endif
          }
        }
      }
  }
  for (int row = 0; row < rows; row++)
    for (int part = 0; part < 4; part++) {
      vec sum = parts[0][row][part];
      for (int u = 1; u < copies; u++) sum += parts[u][row][part];
      sums[row][part] = sum;
    }
}

/* One block of cells for `rows` rows: gates, new c and m. `h` is 0 at a first step from zeros. */
INLINE void cells(int rows, int bf16, const Run *run, int64_t block, Ahead ahead, const void *const *inputs, const void *h, float *c,
                  void *m) {
  const int64_t D = run->cells, P = run->size, wide = bf16 ? 2 : 4;
  const char *weights = (const char *)run->recurrent + block * P * BLOCK * wide;
  for (int lane = 0; lane < GROUP; lane += WIDTH) {
    const int64_t cell = block * GROUP + lane;
    Sums sums;
    for (int row = 0; row < rows; row++) /* wanted when the product is done */
      for (int part = 0; part < 4; part++) __builtin_prefetch((const char *)inputs[row] + (part * D + cell) * wide);
    if (h) product(rows, bf16, weights + 4 * lane, h, bf16 ? P / 2 : P, P, ahead, sums);
    for (int row = 0; row < rows; row++) {
      vec gate[4];
      for (int part = 0; part < 4; part++) {
        const int64_t at = part * D + cell;
        gate[part] = bf16 ? load_half((const uint16_t *)inputs[row] + at) : load((const float *)inputs[row] + at);
        if (h) gate[part] += sums[row][part];
      }
      vec state = load(c + row * D + cell) / sigmoid_part(gate[1]) + gated_tangent(gate[0], gate[2]);
      if (run->cell_clip > 0) state = clip(state, run->cell_clip);
      store(c + row * D + cell, state);
      vec out = gated_tangent(gate[3], state);
      if (bf16) store_half((uint16_t *)m + row * D + cell, out);
      if (!bf16) store((float *)m + row * D + cell, out);
    }
  }
}

/* One block of outputs for `rows` rows: the projection of cells from..to, added to that of the cells before; clipped at
   the end. */
INLINE void project(int rows, int bf16, const Run *run, int64_t block, int64_t from, int64_t to, Ahead ahead, const void *m,
                    float *out, uint16_t *rounded) {
  const int64_t D = run->cells, P = run->size, wide = bf16 ? 2 : 4;
  const char *weights = (const char *)run->projection + (block * D + from) * BLOCK * wide;
  for (int lane = 0; lane < GROUP; lane += WIDTH) {
    Sums sums;
    product(rows, bf16, weights + 4 * lane, (const char *)m + from * wide, bf16 ? D / 2 : D, to - from, ahead, sums);
    for (int row = 0; row < rows; row++)
      for (int part = 0; part < 4; part++) {
        const int64_t column = block * BLOCK + part * GROUP + lane;
        if (column >= P) continue; /* the last block may be filled up */
        vec value = sums[row][part];
        if (from) value += load(out + row * P + column);
        if (to == D && run->proj_clip > 0) value = clip(value, run->proj_clip);
        store(out + row * P + column, value);
        if (to == D && bf16) store_half(rounded + row * P + column, value);
      }
  }
}

#define EACH_ROWS(call)     \
  switch (rows) {           \
    case 1: call(1); break; \
    case 2: call(2); break; \
    case 3: call(3); break; \
    MORE_ROWS(call)         \
  }
#if PANEL == 6
#define MORE_ROWS(call)     \
  case 4: call(4); break;   \
  case 5: call(5); break;   \
  case 6: call(6); break;
#else
#define MORE_ROWS(call)
#endif

/* n rows are cut into panels that differ by one row at most; where the panel begins */
INLINE int64_t panels_of(int64_t n) { return (n + PANEL - 1) / PANEL; }
INLINE int64_t first_row(int64_t n, int64_t panel) { return n * panel / panels_of(n); }

/* A thread's part of all steps: it meets the others once after the cells and once after the outputs of each. */
INLINE void walk(const Run *run, const int bf16, const int far, int thread, int threads) {
  const int64_t D = run->cells, P = run->size, wide = bf16 ? 2 : 4;
  const int64_t blocks = D / GROUP, columns = (P + BLOCK - 1) / BLOCK;
  const char *h = run->h;
  int64_t start = 0;
  for (int64_t step = 0; step < run->steps; step++) {
    const int64_t n = run->batch_sizes[step];
    const void *const *inputs = run->inputs + start;
    char *m = run->projection ? run->m : bf16 ? (char *)(run->rounded + start * P) : (char *)(run->outputs + start * P);
    const int64_t panels = panels_of(n);
    for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++)
      for (int64_t panel = 0; panel < panels; panel++) {
        const int64_t row = first_row(n, panel), rows = first_row(n, panel + 1) - row;
        const char *weights = (const char *)run->recurrent + block * P * BLOCK * wide;
        const int more = block + 1 < blocks * (thread + 1) / threads;
        const Ahead ahead = ahead_of(weights, P * BLOCK * wide, panel, panels, more, far);
#define CELLS(count) \
  cells(count, bf16, run, block, ahead, inputs + row, h ? h + row * P * wide : 0, run->c + row * D, m + row * D * wide)
        EACH_ROWS(CELLS)
      }
#pragma omp barrier
    if (run->projection) {
      /* tasks are panels of blocks; a thread takes its panels of a block through one chunk of weights after the other */
      const int64_t last = columns * panels * (thread + 1) / threads;
      for (int64_t task = columns * panels * thread / threads; task < last;) {
        const int64_t block = task / panels, end = last < (block + 1) * panels ? last : (block + 1) * panels;
        for (int64_t from = 0; from < D; from += CHUNK)
          for (int64_t one = task; one < end; one++) {
            const int64_t to = from + CHUNK < D ? from + CHUNK : D, row = first_row(n, one % panels);
            const int64_t rows = first_row(n, one % panels + 1) - row, at = (start + row) * P;
            const char *weights = (const char *)run->projection + (block * D + from) * BLOCK * wide;
            const int more = end < last || to < D;
            const Ahead ahead = ahead_of(weights, (to - from) * BLOCK * wide, one - task, end - task, more, far);
#define PROJECT(count)                                                                     \
  project(count, bf16, run, block, from, to, ahead, m + row * D * wide, run->outputs + at, \
          bf16 ? run->rounded + at : 0)
            EACH_ROWS(PROJECT)
          }
        task = end;
      }
#pragma omp barrier
    }
    h = bf16 ? (const char *)(run->rounded + start * P) : (const char *)(run->outputs + start * P);
    start += n;
  }
}

/* A thread's part, written out for each kind of weights. */
INLINE void walk_any(const Run *run, int bf16, int thread, int threads) {
  const int far = 5 * run->cells * run->size * (bf16 ? 2 : 4) > FAR;
  if (bf16 && far) walk(run, 1, 1, thread, threads);
  if (bf16 && !far) walk(run, 1, 0, thread, threads);
  if (!bf16 && far) walk(run, 0, 1, thread, threads);
  if (!bf16 && !far) walk(run, 0, 0, thread, threads);
}

/* Run a packed batch. Without a projection a bf16 run leaves its outputs in `rounded` alone. */
void lstmp_run(const Run *run, int bf16, int threads) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  walk_any(run, bf16, omp_get_thread_num(), omp_get_num_threads());
#else
  (void)threads;
  walk_any(run, bf16, 0, 1);
#endif
}

/* A training step: gates (n, 4 D) become their activations, c and m (n, D) are written. */
void lstmp_cells(float *gates, const float *before, float *c, float *m, int64_t n, int64_t D, float cell_clip, int threads) {
  (void)threads;
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int64_t row = 0; row < n; row++)
    for (int64_t cell = 0; cell < D; cell += WIDTH) {
      float *gate = gates + row * 4 * D + cell;
      const int64_t at = row * D + cell;
      vec i = sigmoid(load(gate)), f = sigmoid(load(gate + D)), g = tangent(load(gate + 2 * D)), o = sigmoid(load(gate + 3 * D));
      vec state = f * load(before + at) + i * g;
      if (cell_clip > 0) state = clip(state, cell_clip);
      store(gate, i), store(gate + D, f), store(gate + 2 * D, g), store(gate + 3 * D, o);
      store(c + at, state), store(m + at, o * tangent(state));
    }
}

/* Its derivative: from dm (n, D) and dc (n, D), which becomes that of the c before, to those of the gates before their
   activations (n, 4 D); m (n, D) is made again for the gradient of the projection. A clipped c passes nothing on. */
void lstmp_cells_back(const float *gates, const float *before, const float *c, const float *dm, float *dc, float *d_gates,
                      float *m, int64_t n, int64_t D, float cell_clip, int threads) {
  (void)threads;
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int64_t row = 0; row < n; row++)
    for (int64_t cell = 0; cell < D; cell += WIDTH) {
      const float *gate = gates + row * 4 * D + cell;
      float *d_gate = d_gates + row * 4 * D + cell;
      const int64_t at = row * D + cell;
      vec i = load(gate), f = load(gate + D), g = load(gate + 2 * D), o = load(gate + 3 * D);
      vec state = load(c + at), t = tangent(state), d_out = load(dm + at);
      vec d = load(dc + at) + d_out * o * (1.0f - t * t);
      if (cell_clip > 0) d = pick(magnitude(state) < all(cell_clip), d, all(0));
      store(d_gate, d * g * i * (1.0f - i));
      store(d_gate + D, d * load(before + at) * f * (1.0f - f));
      store(d_gate + 2 * D, d * i * (1.0f - g * g));
      store(d_gate + 3 * D, d_out * t * o * (1.0f - o));
      store(dc + at, d * f);
      store(m + at, o * t);
    }
}
