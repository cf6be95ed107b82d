/* The loops of _dense.h for vectors of V floats. Whoever includes this says what V is and what is done with vectors.
 *
 * Six rows times a panel are twelve vectors, which stay in registers while the inputs pass by. A part of a panel that
 * fits the first-level cache is used for many rows, and those rows fit the second.
 *
 * Every number is summed over the inputs in the same order, however many rows there are: a row's result does not depend
 * on its neighbours.
 */

#define WIDE (2 * V)            /* outputs of a panel */
#define DEEP (8192 / WIDE)      /* inputs at a time, of integers twice as many: 32 kB of a panel */
#define INLINE static inline __attribute__((always_inline)) TARGET

/* Of two numbers one is nan: x86 gives the second. Here that is the value, never the limit. */
INLINE VEC limited(VEC value, float low, float high) { return MAX(SET(low), MIN(SET(high), value)); }

/* After the Cephes library's expf: the nearest power of 2, times a polynomial. */
INLINE VEC exponential(VEC value) {
    const VEC x = limited(value, -87.3f, 88.3f);
    const VEC power = NEAREST(MUL(x, SET(1.44269504088896341f)));
    VEC rest = FNMADD(power, SET(0.693359375f), x);
    rest = FNMADD(power, SET(-2.12194440e-4f), rest);
    VEC sum = SET(1.9875691500e-4f);
    sum = FMADD(sum, rest, SET(1.3981999507e-3f));
    sum = FMADD(sum, rest, SET(8.3334519073e-3f));
    sum = FMADD(sum, rest, SET(4.1665795894e-2f));
    sum = FMADD(sum, rest, SET(1.6666665459e-1f));
    sum = FMADD(sum, rest, SET(5.0000001201e-1f));
    sum = FMADD(sum, MUL(rest, rest), ADD(rest, SET(1)));
    const INT scale = SHIFT(ADD_INT(WHOLE(power), SET_INT(127)), 23);
    return MUL(sum, AS_VEC(scale));
}

INLINE VEC sigmoid(VEC x) {
    const VEC one = SET(1);
    return DIV(one, ADD(one, exponential(XOR(x, SET(-0.0f)))));
}

INLINE VEC tangent(VEC x) {
    const VEC sign = AND(x, SET(-0.0f)), size = XOR(x, sign), one = SET(1);
    const VEC large = SUB(one, DIV(SET(2), ADD(one, exponential(ADD(size, size)))));
    const VEC square = MUL(x, x);
    VEC sum = SET(-5.70498872745e-3f);
    sum = FMADD(sum, square, SET(2.06390887954e-2f));
    sum = FMADD(sum, square, SET(-5.37397155531e-2f));
    sum = FMADD(sum, square, SET(1.33314422036e-1f));
    sum = FMADD(sum, square, SET(-3.33332819422e-1f));
    const VEC small = FMADD(MUL(sum, square), x, x);
    return WHERE_GREATER(size, SET(0.625f), OR(large, sign), small);
}

INLINE VEC finished(VEC x, int then) {
    switch (then) {
    case RELU: return MAX(SET(0), x);
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
INLINE void floats(const int count, const Tile *job, Py_ssize_t from, Py_ssize_t to, VEC sums[TALL][2]) {
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
        sums[i][0] = sums[i][1] = SET(0);
#pragma GCC unroll 4
    for (Py_ssize_t k = from; k < to; k++) {
        const float *at = job->panel + k * WIDE;
        const VEC left = LOAD(at), right = LOAD(at + V);
#pragma GCC unroll 6
        for (int i = 0; i < count; i++) {
            const VEC value = SET(job->rows[k * TALL + i]);
            sums[i][0] = FMADD(value, left, sums[i][0]);
            sums[i][1] = FMADD(value, right, sums[i][1]);
        }
    }
}

/* The same of integers, which stand in pairs. */
INLINE void integers(const int count, const Tile *job, Py_ssize_t from, Py_ssize_t to, VEC sums[TALL][2]) {
    INT whole[TALL][2];
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
        whole[i][0] = whole[i][1] = SET_INT(0);
#pragma GCC unroll 4
    for (Py_ssize_t k = from / 2; k < to / 2; k++) {
        const float *at = job->panel + k * WIDE;
        const INT left = AS_INT(LOAD(at)), right = AS_INT(LOAD(at + V));
#pragma GCC unroll 6
        for (int i = 0; i < count; i++) {
            const INT pair = AS_INT(SET(job->rows[k * TALL + i]));
            whole[i][0] = ADD_PAIRS(whole[i][0], pair, left);
            whole[i][1] = ADD_PAIRS(whole[i][1], pair, right);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < count; i++) {
        const VEC size = SET(job->sizes[i]);
        sums[i][0] = MUL(FLOAT(whole[i][0]), MUL(size, LOAD(job->steps)));
        sums[i][1] = MUL(FLOAT(whole[i][1]), MUL(size, LOAD(job->steps + V)));
    }
}

INLINE void tile(const int count, const int whole, const Tile *job, float *result, Py_ssize_t line) {
    const Py_ssize_t near = whole ? FAR : NEAR;
    for (Py_ssize_t from = 0; from < job->inputs; from += near) {
        const Py_ssize_t to = from + near < job->inputs ? from + near : job->inputs;
        VEC sums[TALL][2];
        if (whole)
            integers(count, job, from, to, sums);
        else
            floats(count, job, from, to, sums);
#pragma GCC unroll 6
        for (int i = 0; i < count; i++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                float *at = result + i * line + V * half;
                VEC sum = sums[i][half];
                if (job->bias && !from)
                    sum = ADD(sum, LOAD(job->bias + V * half));
                if (job->add || from)
                    sum = ADD(sum, LOAD(at));
                STORE(at, to == job->inputs ? finished(sum, job->then) : sum);
            }
    }
}

static TARGET void tiles(Py_ssize_t count, const Tile *job, float *result, Py_ssize_t line) {
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

/* The last panel may have fewer outputs: it is worked on beside the result. */
static TARGET void narrow(Py_ssize_t count, const Tile *job, float *result, Py_ssize_t line, Py_ssize_t outputs) {
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
static TARGET float rounded(const float *row, const float *factors, Py_ssize_t inputs, float *to) {
    const VEC positive = AS_VEC(SET_INT(0x7fffffff));
    INT largest = SET_INT(0);  /* of floats that are not negative, as integers: nan is the largest */
    Py_ssize_t k = 0;
    float last[V] = {0}, ends[V];
    union { int32_t bits; float value; } most = {0};
    for (; k + V <= inputs; k += V) {
        const VEC value = MUL(LOAD(row + k), LOAD(factors + k));
        largest = MAX_INT(largest, AS_INT(AND(value, positive)));
    }
    for (Py_ssize_t rest = k; rest < inputs; rest++)
        last[rest - k] = row[rest] * factors[rest];
    largest = MAX_INT(largest, AS_INT(AND(LOAD(last), positive)));
    STORE(ends, AS_VEC(largest));
    for (int i = 0; i < V; i++) {
        const union { float value; int32_t bits; } end = {ends[i]};
        most.bits = end.bits > most.bits ? end.bits : most.bits;
    }
    const int defined = most.bits < 0x7f800000;
    const float size = most.value / MOST, scale = defined && size >= 1e-30f ? 1 / size : 0;
    for (Py_ssize_t from = 0; from < inputs; from += V) {
        const VEC value = from + V <= inputs ? MUL(LOAD(row + from), LOAD(factors + from)) : LOAD(last);
        const INT whole = WHOLE(MUL(value, SET(scale)));
        float pairs[V / 2];
        STORE_PAIRS(pairs, whole);
        for (int i = 0; i < V / 2 && from + 2 * i < inputs; i++)
            to[(from / 2 + i) * TALL] = pairs[i];
    }
    return defined ? size : __builtin_nanf("");
}

/* `side` has space for a block of rows, six by six side by side: read from the front to the back for every panel. */
TARGET void MULTIPLY(const Product *job, float *side) {
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
TARGET void RUN(const Lstm *job, float *side) {
    const Py_ssize_t size = job->matrix.inputs;
    for (Py_ssize_t step = 0; step < job->steps; step++) {
        float *gates = job->gates + step * job->gates_step;
        const Product product = {.matrix = job->matrix, .rows = job->hidden, .row = size, .result = gates,
                                 .line = job->gates_lane, .count = job->lanes, .add = 1};
        MULTIPLY(&product, side);
        for (Py_ssize_t lane = 0; lane < job->lanes; lane++) {
            const float *gate = gates + lane * job->gates_lane;
            float *hidden = job->hidden + lane * size, *cell = job->cell + lane * size;
            float *result = job->result + lane * job->result_lane + step * job->result_step;
            for (Py_ssize_t j = 0; j < size; j += V) {
                const VEC fresh = MUL(sigmoid(LOAD(gate + j)), tangent(LOAD(gate + 2 * size + j)));
                const VEC kept = sigmoid(LOAD(gate + size + j));
                const VEC state = FMADD(kept, LOAD(cell + j), fresh);
                const VEC shown = MUL(sigmoid(LOAD(gate + 3 * size + j)), tangent(state));
                STORE(cell + j, state);
                STORE(hidden + j, shown);
                if (lane < job->kept)
                    STORE(result + j, shown);
            }
        }
    }
}
