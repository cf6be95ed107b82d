/* Products of rows with a matrix that was laid out for them, and the steps of an LSTM; umx_ext/separation/dense.py
 * explains them.
 *
 * A matrix (inputs, outputs) is kept in panels of 16 outputs, each (inputs, 16), the last one filled up with zeros. Six
 * rows times a panel are twelve vectors, which stay in registers while the inputs pass by. A part of a panel that fits
 * the first-level cache is used for many rows, and those rows fit the second.
 *
 * A matrix of integers has two inputs together, (inputs / 2, 16, 2), which one instruction multiplies and adds. Rows are
 * made integers when they are put side by side: each number times its input's factor, in steps of the row's own size.
 *
 * Every number is summed over the inputs in the same order, however many rows there are: a row's result does not depend
 * on its neighbours. The interpreter is not held meanwhile.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#define WIDE 16    /* outputs of a panel */
#define TALL 6     /* rows at a time */
#define NEAR 128   /* inputs that are summed by themselves, which keeps the roundings small */
#define DEEP 512   /* inputs at a time: 32 kB of a panel */
#define BLOCK 192  /* rows, at most, that a part of the panels is used for: 400 kB */
#define MOST 2047  /* the largest integer: */
#define FAR 512    /* products of two of them add up to less than 2^31 */

enum { NOTHING, RELU, SIGMOID, TANH };

typedef struct {
    const float *panels;    /* or integers, when there are factors */
    const float *factors;   /* (inputs,), or NULL */
    const float *steps;     /* of the integers, (outputs,) filled up like the panels */
    Py_ssize_t inputs, outputs;
} Matrix;

typedef struct {
    Matrix matrix;
    const float *rows;      /* (count, inputs) */
    const float *bias;      /* (outputs,), or NULL */
    float *result;          /* (count, outputs) */
    Py_ssize_t row, line;   /* strides of the rows and of the result */
    Py_ssize_t count;
    int add, then;
} Product;

typedef struct {
    float *gates;           /* for each lane and step 4 * hidden numbers, to which the hidden state's part is added */
    Matrix matrix;          /* (size, 4 * size) */
    float *hidden, *cell;   /* (lanes, size) */
    float *result;          /* the first `kept` lanes' hidden states */
    Py_ssize_t gates_lane, gates_step, result_lane, result_step;
    Py_ssize_t steps, lanes, kept;
} Lstm;

/* How many rows to take at a time: as many each time, for each time all panels have to come. */
static Py_ssize_t block(Py_ssize_t count) {
    const Py_ssize_t times = (count + BLOCK - 1) / BLOCK, height = times ? (count + times - 1) / times : 0;
    return (height + TALL - 1) / TALL * TALL;
}

/* Not on Windows, where GCC does not align what it spills of such vectors. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(_WIN32)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) AVX2

static int capable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* With the wider vectors of AVX-512, torch's own products are faster than these. */
static int usable(void) { return capable() && !__builtin_cpu_supports("avx512f"); }

/* Of two numbers one is nan: x86 gives the second. Here that is the value, never the limit. */
INLINE __m256 limited(__m256 value, float low, float high) {
    return _mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), value));
}

/* After the Cephes library's expf: the nearest power of 2, times a polynomial. */
INLINE __m256 exponential(__m256 value) {
    const __m256 x = limited(value, -87.3f, 88.3f);
    const __m256 power =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 rest = _mm256_fnmadd_ps(power, _mm256_set1_ps(0.693359375f), x);
    rest = _mm256_fnmadd_ps(power, _mm256_set1_ps(-2.12194440e-4f), rest);
    __m256 sum = _mm256_set1_ps(1.9875691500e-4f);
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.3981999507e-3f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(8.3334519073e-3f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(4.1665795894e-2f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(1.6666665459e-1f));
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(5.0000001201e-1f));
    sum = _mm256_fmadd_ps(sum, _mm256_mul_ps(rest, rest), _mm256_add_ps(rest, _mm256_set1_ps(1)));
    const __m256i scale = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(scale));
}

INLINE __m256 sigmoid(__m256 x) {
    const __m256 one = _mm256_set1_ps(1);
    return _mm256_div_ps(one, _mm256_add_ps(one, exponential(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f)))));
}

INLINE __m256 tangent(__m256 x) {
    const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f)), size = _mm256_xor_ps(x, sign), one = _mm256_set1_ps(1);
    const __m256 large = _mm256_sub_ps(
        one, _mm256_div_ps(_mm256_set1_ps(2), _mm256_add_ps(one, exponential(_mm256_add_ps(size, size)))));
    const __m256 square = _mm256_mul_ps(x, x);
    __m256 sum = _mm256_set1_ps(-5.70498872745e-3f);
    sum = _mm256_fmadd_ps(sum, square, _mm256_set1_ps(2.06390887954e-2f));
    sum = _mm256_fmadd_ps(sum, square, _mm256_set1_ps(-5.37397155531e-2f));
    sum = _mm256_fmadd_ps(sum, square, _mm256_set1_ps(1.33314422036e-1f));
    sum = _mm256_fmadd_ps(sum, square, _mm256_set1_ps(-3.33332819422e-1f));
    const __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(sum, square), x, x);
    return _mm256_blendv_ps(small, _mm256_or_ps(large, sign),
                            _mm256_cmp_ps(size, _mm256_set1_ps(0.625f), _CMP_GT_OQ));
}

INLINE __m256 finished(__m256 x, int then) {
    switch (then) {
    case RELU: return _mm256_max_ps(_mm256_setzero_ps(), x);
    case SIGMOID: return sigmoid(x);
    case TANH: return tangent(x);
    default: return x;
    }
}

/* What a tile is made of. */
typedef struct {
    const float *rows;   /* side by side, (inputs, 6), or as pairs of integers (inputs / 2, 6) */
    const float *sizes;  /* of the rows' integers' steps */
    const float *panel;  /* part of one */
    const float *steps;  /* of the panel's integers */
    const float *bias;
    Py_ssize_t inputs;
    int add, then;
} Tile;

/* `count` rows, a constant from 1 to 6, times a part of a panel: the sums of inputs `from` to `to`. */
INLINE void floats(const int count, const Tile *job, Py_ssize_t from, Py_ssize_t to, __m256 sums[TALL][2]) {
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
        sums[i][0] = sums[i][1] = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (Py_ssize_t k = from; k < to; k++) {
        const float *at = job->panel + k * WIDE;
        const __m256 left = _mm256_loadu_ps(at), right = _mm256_loadu_ps(at + 8);
#pragma GCC unroll 6
        for (int i = 0; i < count; i++) {
            const __m256 value = _mm256_broadcast_ss(job->rows + k * TALL + i);
            sums[i][0] = _mm256_fmadd_ps(value, left, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(value, right, sums[i][1]);
        }
    }
}

/* The same of integers, which stand in pairs. */
INLINE void integers(const int count, const Tile *job, Py_ssize_t from, Py_ssize_t to, __m256 sums[TALL][2]) {
    __m256i whole[TALL][2];
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
        whole[i][0] = whole[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (Py_ssize_t k = from / 2; k < to / 2; k++) {
        const __m256i *at = (const __m256i *)(job->panel + k * WIDE);
        const __m256i left = _mm256_loadu_si256(at), right = _mm256_loadu_si256(at + 1);
#pragma GCC unroll 6
        for (int i = 0; i < count; i++) {
            const __m256i pair = _mm256_castps_si256(_mm256_broadcast_ss(job->rows + k * TALL + i));
            whole[i][0] = _mm256_add_epi32(whole[i][0], _mm256_madd_epi16(pair, left));
            whole[i][1] = _mm256_add_epi32(whole[i][1], _mm256_madd_epi16(pair, right));
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < count; i++) {
        const __m256 size = _mm256_broadcast_ss(job->sizes + i);
        const __m256 left = _mm256_mul_ps(size, _mm256_loadu_ps(job->steps));
        const __m256 right = _mm256_mul_ps(size, _mm256_loadu_ps(job->steps + 8));
        sums[i][0] = _mm256_mul_ps(_mm256_cvtepi32_ps(whole[i][0]), left);
        sums[i][1] = _mm256_mul_ps(_mm256_cvtepi32_ps(whole[i][1]), right);
    }
}

INLINE void tile(const int count, const int whole, const Tile *job, float *result, Py_ssize_t line) {
    const Py_ssize_t near = whole ? FAR : NEAR;
    for (Py_ssize_t from = 0; from < job->inputs; from += near) {
        const Py_ssize_t to = from + near < job->inputs ? from + near : job->inputs;
        __m256 sums[TALL][2];
        if (whole)
            integers(count, job, from, to, sums);
        else
            floats(count, job, from, to, sums);
#pragma GCC unroll 6
        for (int i = 0; i < count; i++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                float *at = result + i * line + 8 * half;
                __m256 sum = sums[i][half];
                if (job->bias && !from)
                    sum = _mm256_add_ps(sum, _mm256_loadu_ps(job->bias + 8 * half));
                if (job->add || from)
                    sum = _mm256_add_ps(sum, _mm256_loadu_ps(at));
                _mm256_storeu_ps(at, to == job->inputs ? finished(sum, job->then) : sum);
            }
    }
}

static AVX2 void tiles(Py_ssize_t count, const Tile *job, float *result, Py_ssize_t line) {
    if (job->steps)
        switch (count) {
        case 6: tile(6, 1, job, result, line); break;
        case 5: tile(5, 1, job, result, line); break;
        case 4: tile(4, 1, job, result, line); break;
        case 3: tile(3, 1, job, result, line); break;
        case 2: tile(2, 1, job, result, line); break;
        case 1: tile(1, 1, job, result, line); break;
        }
    else
        switch (count) {
        case 6: tile(6, 0, job, result, line); break;
        case 5: tile(5, 0, job, result, line); break;
        case 4: tile(4, 0, job, result, line); break;
        case 3: tile(3, 0, job, result, line); break;
        case 2: tile(2, 0, job, result, line); break;
        case 1: tile(1, 0, job, result, line); break;
        }
}

/* The last panel may have fewer outputs than 16: it is worked on beside the result. */
static AVX2 void narrow(Py_ssize_t count, const Tile *job, float *result, Py_ssize_t line, Py_ssize_t outputs) {
    float space[TALL * WIDE] = {0}, offset[WIDE] = {0};
    Tile beside = *job;
    for (Py_ssize_t i = 0; job->add && i < count; i++)
        for (Py_ssize_t j = 0; j < outputs; j++)
            space[i * WIDE + j] = result[i * line + j];
    for (Py_ssize_t j = 0; job->bias && j < outputs; j++)
        offset[j] = job->bias[j];
    beside.bias = offset;
    tiles(count, &beside, space, WIDE);
    for (Py_ssize_t i = 0; i < count; i++)
        for (Py_ssize_t j = 0; j < outputs; j++)
            result[i * line + j] = space[i * WIDE + j];
}

/* Make a row integers, in every sixth place of `to`, two in one. Returns the size of their steps; that of a row with
 * something infinite or undefined is undefined, and so will its products be. */
static AVX2 float rounded(const float *row, const float *factors, Py_ssize_t inputs, float *to) {
    const __m256 positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i largest = _mm256_setzero_si256();  /* of floats that are not negative, as integers: nan is the largest */
    Py_ssize_t k = 0;
    float last[8] = {0}, ends[8];
    union { int32_t bits; float value; } most = {0};
    for (; k + 8 <= inputs; k += 8) {
        const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(row + k), _mm256_loadu_ps(factors + k));
        largest = _mm256_max_epi32(largest, _mm256_castps_si256(_mm256_and_ps(value, positive)));
    }
    for (Py_ssize_t rest = k; rest < inputs; rest++)
        last[rest - k] = row[rest] * factors[rest];
    largest = _mm256_max_epi32(largest, _mm256_castps_si256(_mm256_and_ps(_mm256_loadu_ps(last), positive)));
    _mm256_storeu_ps(ends, _mm256_castsi256_ps(largest));
    for (int i = 0; i < 8; i++) {
        const union { float value; int32_t bits; } end = {ends[i]};
        most.bits = end.bits > most.bits ? end.bits : most.bits;
    }
    const int defined = most.bits < 0x7f800000;
    const float size = most.value / MOST, scale = defined && size >= 1e-30f ? 1 / size : 0;
    for (Py_ssize_t from = 0; from < inputs; from += 8) {
        const __m256 value = from + 8 <= inputs
            ? _mm256_mul_ps(_mm256_loadu_ps(row + from), _mm256_loadu_ps(factors + from))
            : _mm256_loadu_ps(last);
        const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(value, _mm256_set1_ps(scale)));
        const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        float four[4];
        _mm_storeu_ps(four, _mm_castsi128_ps(pairs));
        for (int i = 0; i < 4 && from + 2 * i < inputs; i++)
            to[(from / 2 + i) * TALL] = four[i];
    }
    return defined ? size : __builtin_nanf("");
}

/* `side` has space for a block of rows, six by six side by side: read from the front to the back for every panel. */
static AVX2 void multiply(const Product *job, float *side) {
    const Matrix *matrix = &job->matrix;
    const Py_ssize_t height = block(job->count), inputs = matrix->inputs, outputs = matrix->outputs;
    const int together = matrix->factors ? 2 : 1;
    const Py_ssize_t deep = together * DEEP, panel = (inputs + together - 1) / together * WIDE;
    float sizes[BLOCK + TALL];
    for (Py_ssize_t top = 0; top < job->count; top += height) {
        const Py_ssize_t bottom = top + height < job->count ? top + height : job->count;
        for (Py_ssize_t from = 0; from < inputs; from += deep) {
            const Py_ssize_t depth = from + deep < inputs ? deep : inputs - from;
            const Py_ssize_t kept = (depth + together - 1) / together;
            const int last = from + depth == inputs;
            for (Py_ssize_t i = top; i < bottom; i++) {
                float *to = side + (i - top) / TALL * (TALL * kept) + (i - top) % TALL;
                const float *row = job->rows + i * job->row + from;
                if (matrix->factors)
                    sizes[i - top] = rounded(row, matrix->factors + from, depth, to);
                else
                    for (Py_ssize_t k = 0; k < depth; k++)
                        to[k * TALL] = row[k];
            }
            for (Py_ssize_t column = 0; column < outputs; column += WIDE) {
                Tile part = {.panel = matrix->panels + column / WIDE * panel + from / together * WIDE,
                             .steps = matrix->factors ? matrix->steps + column : NULL,
                             .bias = job->bias && !from ? job->bias + column : NULL,
                             .inputs = kept * together,
                             .add = from ? 1 : job->add,
                             .then = last ? job->then : NOTHING};
                for (Py_ssize_t first = top; first < bottom; first += TALL) {
                    const Py_ssize_t count = first + TALL < bottom ? TALL : bottom - first;
                    float *result = job->result + first * job->line + column;
                    part.rows = side + (first - top) * kept;
                    part.sizes = sizes + first - top;
                    if (column + WIDE <= outputs)
                        tiles(count, &part, result, job->line);
                    else
                        narrow(count, &part, result, job->line, outputs - column);
                }
            }
        }
    }
}

/* Gates in torch's order: input, forget, cell, output. */
static AVX2 void run(const Lstm *job, float *side) {
    const Py_ssize_t size = job->matrix.inputs;
    for (Py_ssize_t step = 0; step < job->steps; step++) {
        float *gates = job->gates + step * job->gates_step;
        const Product product = {.matrix = job->matrix, .rows = job->hidden, .row = size, .result = gates,
                                 .line = job->gates_lane, .count = job->lanes, .add = 1};
        multiply(&product, side);
        for (Py_ssize_t lane = 0; lane < job->lanes; lane++) {
            const float *gate = gates + lane * job->gates_lane;
            float *hidden = job->hidden + lane * size, *cell = job->cell + lane * size;
            float *result = job->result + lane * job->result_lane + step * job->result_step;
            for (Py_ssize_t j = 0; j < size; j += 8) {
                const __m256 fresh = _mm256_mul_ps(sigmoid(_mm256_loadu_ps(gate + j)),
                                                   tangent(_mm256_loadu_ps(gate + 2 * size + j)));
                const __m256 kept = sigmoid(_mm256_loadu_ps(gate + size + j));
                const __m256 state = _mm256_fmadd_ps(kept, _mm256_loadu_ps(cell + j), fresh);
                const __m256 shown = _mm256_mul_ps(sigmoid(_mm256_loadu_ps(gate + 3 * size + j)), tangent(state));
                _mm256_storeu_ps(cell + j, state);
                _mm256_storeu_ps(hidden + j, shown);
                if (lane < job->kept)
                    _mm256_storeu_ps(result + j, shown);
            }
        }
    }
}

#else

static int capable(void) { return 0; }
static int usable(void) { return 0; }
static void multiply(const Product *job, float *side) { (void)job, (void)side; }
static void run(const Lstm *job, float *side) { (void)job, (void)side; }

#endif

/* Python's side. Addresses and shapes come from dense.py, which has checked them: of the same LAYOUT. */

#define LAYOUT 2

static void *address(unsigned long long value) { return (void *)(uintptr_t)value; }

/* For `multiply`; NULL, and an exception, when there is none. Not on the stack: other threads' may be small. */
static float *space(Py_ssize_t rows, Py_ssize_t inputs) {
    float *side = PyMem_RawMalloc(sizeof(float) * (block(rows) + TALL) * (inputs < DEEP ? inputs : DEEP));
    if (!side)
        PyErr_NoMemory();
    return side;
}

static PyObject *product(PyObject *module, PyObject *arguments) {
    unsigned long long panels, factors, steps, rows, bias, result;
    Product job;
    if (!PyArg_ParseTuple(arguments, "KKKnnKnKKnnii", &panels, &factors, &steps, &job.matrix.inputs,
                          &job.matrix.outputs, &rows, &job.row, &bias, &result, &job.line, &job.count, &job.add,
                          &job.then))
        return NULL;
    job.matrix.panels = address(panels);
    job.matrix.factors = address(factors);
    job.matrix.steps = address(steps);
    job.rows = address(rows);
    job.bias = address(bias);
    job.result = address(result);
    float *side = space(job.count, job.matrix.inputs);
    if (!side)
        return NULL;
    Py_BEGIN_ALLOW_THREADS multiply(&job, side);
    Py_END_ALLOW_THREADS PyMem_RawFree(side);
    Py_RETURN_NONE;
}

static PyObject *lstm(PyObject *module, PyObject *arguments) {
    unsigned long long panels, factors, steps, gates, hidden, cell, result;
    Lstm job;
    if (!PyArg_ParseTuple(arguments, "KKKnnKnnKKKnnnnn", &panels, &factors, &steps, &job.matrix.inputs,
                          &job.matrix.outputs, &gates, &job.gates_lane, &job.gates_step, &hidden, &cell, &result,
                          &job.result_lane, &job.result_step, &job.steps, &job.lanes, &job.kept))
        return NULL;
    job.matrix.panels = address(panels);
    job.matrix.factors = address(factors);
    job.matrix.steps = address(steps);
    job.gates = address(gates);
    job.hidden = address(hidden);
    job.cell = address(cell);
    job.result = address(result);
    float *side = space(job.lanes, job.matrix.inputs);
    if (!side)
        return NULL;
    Py_BEGIN_ALLOW_THREADS run(&job, side);
    Py_END_ALLOW_THREADS PyMem_RawFree(side);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"product", product, METH_VARARGS, NULL},
    {"lstm", lstm, METH_VARARGS, NULL},
    {NULL},
};

static int fill(PyObject *module) {
    return PyModule_AddIntConstant(module, "LAYOUT", LAYOUT) || PyModule_AddIntConstant(module, "WIDE", WIDE) ||
           PyModule_AddIntConstant(module, "MOST", MOST) || PyModule_AddIntConstant(module, "CAPABLE", capable()) ||
           PyModule_AddIntConstant(module, "USABLE", usable());
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_dense", NULL, 0, methods, slots};

PyMODINIT_FUNC PyInit__dense(void) { return PyModuleDef_Init(&definition); }
