/* Loops over spectra that torch would make in many passes; umx_ext/separation/planar.py explains them.
 *
 * Every plane is float32, (rows, bins), its bins next to each other. A block of bins is done for all rows before the
 * next: what belongs to a bin then stays in the first-level cache. The interpreter is not held meanwhile. No bin knows
 * of another, so that threads can share them.
 *
 * Each loop is compiled for several instruction sets where the compiler can, and the best that runs is chosen when the
 * module is loaded. Nothing is summed in another order in any of them: they differ by the rounding of a product.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <pythread.h>
#include <stdint.h>

#define BLOCK 256 /* bins */
#define MOST 32   /* sources */
#define THREADS 16
#define ALIGNED 16 /* bins: where a thread's begin */

/* Of two numbers the larger; a nan, once there, stays. */
#define LARGER(value, most) ((value) > (most) || (value) != (value) ? (value) : (most))

#if defined(_MSC_VER)
#define RESTRICT __restrict
#define INLINE static __forceinline
#else
#define RESTRICT restrict
#define INLINE static inline __attribute__((always_inline))
#endif

#define IN const float *RESTRICT

typedef struct {
    const float *left_real, *left_imag, *right_real, *right_imag;
    Py_ssize_t stride; /* of a row */
    Py_ssize_t rows, bins;
} Mixture;

typedef struct {
    Py_ssize_t begin, end;
} Span; /* of bins, or of rows */

typedef struct {
    Py_ssize_t masks;          /* sources that have one */
    Py_ssize_t sources;        /* the residual counted */
    int of_magnitudes;         /* the planes are not masks but masks times the mixture's magnitudes */
    float tiny;                /* of the mixture's power, beside which its magnitudes are not 0 */
    const float *left[MOST];   /* a mask's plane for each channel */
    const float *right[MOST];
    Py_ssize_t stride[MOST];
    float *powers;             /* (sources, rows, bins) */
    double *sums;              /* (sources, 4, bins), added to */
} Moments;

typedef struct {
    Py_ssize_t sources, wanted;
    Py_ssize_t which[MOST];    /* of the sources are wanted */
    const float *powers;       /* (sources, rows, bins) */
    const float *basis;        /* (3, bins): cos, and the real and the imaginary part of sin */
    const float *rotated;      /* (sources, 4, bins): Q^H R Q, entries 00, 11, real and imaginary part of 01 */
    const float *back;         /* (sources, 4, 2, bins): R Q, entries 00, 01, 10, 11, real and imaginary parts */
    float *estimates;          /* complex, a row's bins next to each other */
    Py_ssize_t source, channel, row; /* strides of the estimates, in complex numbers */
    float *following;          /* (wanted, rows, bins): the estimates' powers, and their sums, in their place */
    double *sums;              /* (wanted, 4, bins), added to */
    float noise;
} Gains;

INLINE float moments_body(const Mixture *mixture, const Moments *job, Span span) {
    const Py_ssize_t bins = mixture->bins, rows = mixture->rows;
    float peak = 0;
    for (Py_ssize_t first = span.begin; first < span.end; first += BLOCK) {
        const Py_ssize_t width = span.end - first < BLOCK ? span.end - first : BLOCK;
        float peaks[BLOCK] = {0};
        for (Py_ssize_t row = 0; row < rows; row++) {
            const Py_ssize_t at = row * mixture->stride + first;
            IN lr = mixture->left_real + at;
            IN li = mixture->left_imag + at;
            IN rr = mixture->right_real + at;
            IN ri = mixture->right_imag + at;
            float p00[BLOCK], p11[BLOCK], real01[BLOCK], imag01[BLOCK], rest_left[BLOCK], rest_right[BLOCK];
            float per_left[BLOCK], per_right[BLOCK], mask_left[BLOCK], mask_right[BLOCK];
            for (Py_ssize_t i = 0; i < width; i++) {
                p00[i] = lr[i] * lr[i] + li[i] * li[i];
                p11[i] = rr[i] * rr[i] + ri[i] * ri[i];
                real01[i] = lr[i] * rr[i] + li[i] * ri[i];
                imag01[i] = li[i] * rr[i] - lr[i] * ri[i];
                peaks[i] = LARGER(p00[i], peaks[i]);
                peaks[i] = LARGER(p11[i], peaks[i]);
                rest_left[i] = rest_right[i] = 1;
            }
            if (job->of_magnitudes)
                for (Py_ssize_t i = 0; i < width; i++) {
                    per_left[i] = 1 / sqrtf(p00[i] + job->tiny);
                    per_right[i] = 1 / sqrtf(p11[i] + job->tiny);
                }
            for (Py_ssize_t source = 0; source < job->sources; source++) {
                const float *left = rest_left, *right = rest_right;
                if (source < job->masks) {
                    left = job->left[source] + row * job->stride[source] + first;
                    right = job->right[source] + row * job->stride[source] + first;
                    if (job->of_magnitudes) {
                        for (Py_ssize_t i = 0; i < width; i++) {
                            mask_left[i] = left[i] * per_left[i];
                            mask_right[i] = right[i] * per_right[i];
                        }
                        left = mask_left, right = mask_right;
                    }
                }
                float *RESTRICT power = job->powers + (source * rows + row) * bins + first;
                double *sums = job->sums + 4 * source * bins + first;
                double *RESTRICT s00 = sums;
                double *RESTRICT s11 = sums + bins;
                double *RESTRICT sum_real = sums + 2 * bins;
                double *RESTRICT sum_imag = sums + 3 * bins;
                for (Py_ssize_t i = 0; i < width; i++) {
                    const float cross = left[i] * right[i];
                    const float y00 = left[i] * left[i] * p00[i], y11 = right[i] * right[i] * p11[i];
                    s00[i] += y00;
                    s11[i] += y11;
                    sum_real[i] += cross * real01[i];
                    sum_imag[i] += cross * imag01[i];
                    power[i] = (y00 + y11) * 0.5f;
                }
                if (source < job->masks && job->sources > job->masks)
                    for (Py_ssize_t i = 0; i < width; i++) {
                        rest_left[i] -= left[i];
                        rest_right[i] -= right[i];
                    }
            }
        }
        for (Py_ssize_t i = 0; i < width; i++)
            peak = LARGER(peaks[i], peak);
    }
    return peak;
}

INLINE void gains_body(const Mixture *mixture, const Gains *job, Span span) {
    const Py_ssize_t bins = mixture->bins, rows = mixture->rows;
    const float noise = job->noise, noise2 = noise * noise;
    for (Py_ssize_t first = span.begin; first < span.end; first += BLOCK) {
        const Py_ssize_t width = span.end - first < BLOCK ? span.end - first : BLOCK;
        IN cos = job->basis + first;
        IN sin_real = job->basis + bins + first;
        IN sin_imag = job->basis + 2 * bins + first;
        for (Py_ssize_t row = 0; row < rows; row++) {
            const Py_ssize_t at = row * mixture->stride + first;
            IN lr = mixture->left_real + at;
            IN li = mixture->left_imag + at;
            IN rr = mixture->right_real + at;
            IN ri = mixture->right_imag + at;
            float c00[BLOCK] = {0}, c11[BLOCK] = {0}, real01[BLOCK] = {0}, imag01[BLOCK] = {0};
            for (Py_ssize_t source = 0; source < job->sources; source++) {
                const float *rotated = job->rotated + 4 * source * bins + first;
                IN power = job->powers + (source * rows + row) * bins + first;
                IN q00 = rotated;
                IN q11 = rotated + bins;
                IN q_real = rotated + 2 * bins;
                IN q_imag = rotated + 3 * bins;
                for (Py_ssize_t i = 0; i < width; i++) {
                    c00[i] += power[i] * q00[i];
                    c11[i] += power[i] * q11[i];
                    real01[i] += power[i] * q_real[i];
                    imag01[i] += power[i] * q_imag[i];
                }
            }
            float zs_real[BLOCK], zs_imag[BLOCK], zw_real[BLOCK], zw_imag[BLOCK], inverse[BLOCK];
            for (Py_ssize_t i = 0; i < width; i++) {
                /* Q^H x */
                const float strong_real = lr[i] * cos[i] + rr[i] * sin_real[i] - ri[i] * sin_imag[i];
                const float strong_imag = li[i] * cos[i] + ri[i] * sin_real[i] + rr[i] * sin_imag[i];
                const float weak_real = rr[i] * cos[i] - lr[i] * sin_real[i] - li[i] * sin_imag[i];
                const float weak_imag = ri[i] * cos[i] - li[i] * sin_real[i] + lr[i] * sin_imag[i];
                /* det(A + s I) = det A + s (trace A + s), and det A is never negative. */
                float determinant = c00[i] * c11[i] - real01[i] * real01[i] - imag01[i] * imag01[i];
                determinant = determinant < 0 ? 0 : determinant;
                inverse[i] = 1 / (determinant + noise * (c00[i] + c11[i]) + noise2);
                const float a = c00[i] + noise, d = c11[i] + noise;
                /* adj(Q^H C Q) Q^H x */
                zs_real[i] = strong_real * d - weak_real * real01[i] + weak_imag * imag01[i];
                zs_imag[i] = strong_imag * d - weak_imag * real01[i] - weak_real * imag01[i];
                zw_real[i] = weak_real * a - strong_real * real01[i] - strong_imag * imag01[i];
                zw_imag[i] = weak_imag * a - strong_imag * real01[i] + strong_real * imag01[i];
            }
            for (Py_ssize_t number = 0; number < job->wanted; number++) {
                const Py_ssize_t source = job->which[number];
                IN power = job->powers + (source * rows + row) * bins + first;
                float y_real[2][BLOCK], y_imag[2][BLOCK];
                for (int channel = 0; channel < 2; channel++) {
                    const float *back = job->back + (8 * source + 4 * channel) * bins + first;
                    IN s_real = back;
                    IN s_imag = back + bins;
                    IN w_real = back + 2 * bins;
                    IN w_imag = back + 3 * bins;
                    float *RESTRICT real = y_real[channel];
                    float *RESTRICT imag = y_imag[channel];
                    for (Py_ssize_t i = 0; i < width; i++) {
                        const float gain = power[i] * inverse[i];
                        real[i] = gain * (zs_real[i] * s_real[i] - zs_imag[i] * s_imag[i] + zw_real[i] * w_real[i] -
                                          zw_imag[i] * w_imag[i]);
                        imag[i] = gain * (zs_real[i] * s_imag[i] + zs_imag[i] * s_real[i] + zw_real[i] * w_imag[i] +
                                          zw_imag[i] * w_real[i]);
                    }
                    if (job->estimates) {
                        float *RESTRICT estimate =
                            job->estimates + 2 * (number * job->source + channel * job->channel + row * job->row + first);
                        for (Py_ssize_t i = 0; i < width; i++) {
                            estimate[2 * i] = real[i];
                            estimate[2 * i + 1] = imag[i];
                        }
                    }
                }
                if (job->sums) {
                    float *RESTRICT following = job->following + (number * rows + row) * bins + first;
                    double *sums = job->sums + 4 * number * bins + first;
                    double *RESTRICT s00 = sums;
                    double *RESTRICT s11 = sums + bins;
                    double *RESTRICT sum_real = sums + 2 * bins;
                    double *RESTRICT sum_imag = sums + 3 * bins;
                    for (Py_ssize_t i = 0; i < width; i++) {
                        const float y00 = y_real[0][i] * y_real[0][i] + y_imag[0][i] * y_imag[0][i];
                        const float y11 = y_real[1][i] * y_real[1][i] + y_imag[1][i] * y_imag[1][i];
                        s00[i] += y00;
                        s11[i] += y11;
                        sum_real[i] += y_real[0][i] * y_real[1][i] + y_imag[0][i] * y_imag[1][i];
                        sum_imag[i] += y_imag[0][i] * y_real[1][i] - y_real[0][i] * y_imag[1][i];
                        following[i] = (y00 + y11) * 0.5f;
                    }
                }
            }
        }
    }
}

typedef struct {
    const float *spectrum; /* complex (rows, channels, bins), bins next to each other */
    Py_ssize_t spectrum_row, spectrum_channel; /* its strides, in complex numbers */
    Py_ssize_t rows, channels, bins;
    float *parts;          /* real and imaginary planes, each row's bins next to each other */
    Py_ssize_t channel, part, row; /* strides of the planes */
} Split;

INLINE void magnitude_body(IN spectrum, float *RESTRICT magnitude, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++)
        magnitude[i] = sqrtf(spectrum[2 * i] * spectrum[2 * i] + spectrum[2 * i + 1] * spectrum[2 * i + 1]);
}

INLINE void split_body(const Split *job, Span rows) {
    for (Py_ssize_t row = rows.begin; row < rows.end; row++)
        for (Py_ssize_t channel = 0; channel < job->channels; channel++) {
            IN spectrum = job->spectrum + 2 * (row * job->spectrum_row + channel * job->spectrum_channel);
            float *RESTRICT real = job->parts + channel * job->channel + row * job->row;
            float *RESTRICT imag = job->parts + channel * job->channel + job->part + row * job->row;
            for (Py_ssize_t i = 0; i < job->bins; i++) {
                real[i] = spectrum[2 * i];
                imag[i] = spectrum[2 * i + 1];
            }
        }
}

INLINE void add_body(const float *frames, IN window, float *sums, Py_ssize_t rows, Py_ssize_t size, Py_ssize_t hop) {
    for (Py_ssize_t row = 0; row < rows; row++) {
        IN frame = frames + row * size;
        float *RESTRICT sum = sums + row * hop;
        for (Py_ssize_t i = 0; i < size; i++)
            sum[i] += frame[i] * window[i];
    }
}

/* Instruction sets. */

typedef struct {
    float (*moments)(const Mixture *, const Moments *, Span);
    void (*gains)(const Mixture *, const Gains *, Span);
    void (*magnitude)(const float *, float *, Py_ssize_t);
    void (*split)(const Split *, Span);
    void (*add)(const float *, const float *, float *, Py_ssize_t, Py_ssize_t, Py_ssize_t);
} Loops;

#define VARIANT(name, target)                                                                                         \
    target static float moments_##name(const Mixture *mixture, const Moments *job, Span span) {                       \
        return moments_body(mixture, job, span);                                                                      \
    }                                                                                                                 \
    target static void gains_##name(const Mixture *mixture, const Gains *job, Span span) {                            \
        gains_body(mixture, job, span);                                                                               \
    }                                                                                                                 \
    target static void magnitude_##name(const float *spectrum, float *magnitude, Py_ssize_t count) {                  \
        magnitude_body(spectrum, magnitude, count);                                                                   \
    }                                                                                                                 \
    target static void split_##name(const Split *job, Span rows) { split_body(job, rows); }                           \
    target static void add_##name(const float *frames, const float *window, float *sums, Py_ssize_t rows,             \
                                  Py_ssize_t size, Py_ssize_t hop) {                                                  \
        add_body(frames, window, sums, rows, size, hop);                                                              \
    }                                                                                                                 \
    static const Loops loops_##name = {moments_##name, gains_##name, magnitude_##name, split_##name, add_##name};

VARIANT(plain, )

static const Loops *loops = &loops_plain;

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
/* GCC would use half of them. */
#if defined(__clang__) || __GNUC__ < 8
#define WIDE
#else
#define WIDE ",prefer-vector-width=512"
#endif
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma" WIDE)))
VARIANT(avx2, AVX2)
VARIANT(avx512, AVX512)

static void choose(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        loops = &loops_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
        loops = &loops_avx512;
}
#else
static void choose(void) {}
#endif

/* Threads: each its share of the bins or rows. They know nothing of Python but its locks, which work everywhere. */

typedef struct {
    const Mixture *mixture;
    const Moments *moments; /* one of these three */
    const Gains *gains;
    const Split *split;
    Span span;
    float peak;
    PyThread_type_lock done; /* held until the share is done */
} Share;

static void do_share(void *argument) {
    Share *share = argument;
    if (share->moments)
        share->peak = loops->moments(share->mixture, share->moments, share->span);
    else if (share->gains)
        loops->gains(share->mixture, share->gains, share->span);
    else
        loops->split(share->split, share->span);
    if (share->done)
        PyThread_release_lock(share->done);
}

/* Where `number` of `count` threads begins. */
static Py_ssize_t begin_of(Py_ssize_t length, int number, int count) {
    return number == count ? length : length * number / count / ALIGNED * ALIGNED;
}

/* A job on so many bins or rows, shared by threads; the largest peak that was found. A thread that cannot be had is
 * done without. */
static float on_threads(Share job, Py_ssize_t length, int count) {
    Share shares[THREADS];
    float peak = 0;
    count = count > THREADS ? THREADS : count < 1 ? 1 : count;
    for (int i = 0; i < count; i++) {
        shares[i] = job;
        shares[i].span.begin = begin_of(length, i, count);
        shares[i].span.end = begin_of(length, i + 1, count);
    }
    for (int i = 1; i < count; i++) {
        shares[i].done = PyThread_allocate_lock();
        if (shares[i].done == NULL)
            continue;
        PyThread_acquire_lock(shares[i].done, WAIT_LOCK);
        if (PyThread_start_new_thread(do_share, &shares[i]) == PYTHREAD_INVALID_THREAD_ID) {
            PyThread_release_lock(shares[i].done);
            PyThread_free_lock(shares[i].done);
            shares[i].done = NULL;
        }
    }
    for (int i = 0; i < count; i++) {
        if (shares[i].done) {
            PyThread_acquire_lock(shares[i].done, WAIT_LOCK);
            PyThread_release_lock(shares[i].done);
            PyThread_free_lock(shares[i].done);
        } else {
            do_share(&shares[i]);
        }
        peak = LARGER(shares[i].peak, peak);
    }
    return peak;
}

/* Python's side. Addresses and shapes come from planar.py, which has checked them: of the same LAYOUT. */

#define LAYOUT 4

static void *address(unsigned long long value) { return (void *)(uintptr_t)value; }

static Mixture planes(unsigned long long base, Py_ssize_t channel, Py_ssize_t part, Py_ssize_t row, Py_ssize_t rows,
                      Py_ssize_t bins) {
    const float *first = address(base);
    Mixture mixture = {first, first + part, first + channel, first + channel + part, row, rows, bins};
    return mixture;
}

static Py_ssize_t numbers(PyObject *tuple, Py_ssize_t *values) {
    const Py_ssize_t count = PyTuple_Size(tuple);
    if (count > MOST)
        PyErr_Format(PyExc_ValueError, "expected at most %d sources, got %zd", MOST, count);
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++)
        values[i] = PyLong_AsSsize_t(PyTuple_GetItem(tuple, i));
    return count;
}

static PyObject *moments(PyObject *module, PyObject *arguments) {
    unsigned long long base, powers, sums;
    Py_ssize_t channel, part, row, rows, bins, residual, left[MOST], right[MOST];
    PyObject *lefts, *rights, *strides;
    Moments job;
    int threads;
    if (!PyArg_ParseTuple(arguments, "KnnnnnO!O!O!npfKKi", &base, &channel, &part, &row, &rows, &bins, &PyTuple_Type,
                          &lefts, &PyTuple_Type, &rights, &PyTuple_Type, &strides, &residual, &job.of_magnitudes,
                          &job.tiny, &powers, &sums, &threads))
        return NULL;
    job.masks = numbers(lefts, left);
    if (PyErr_Occurred() || numbers(rights, right) != job.masks || numbers(strides, job.stride) != job.masks ||
        PyErr_Occurred())
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "expected as many planes for each channel");
    for (Py_ssize_t source = 0; source < job.masks; source++) {
        job.left[source] = (const float *)(uintptr_t)left[source];
        job.right[source] = (const float *)(uintptr_t)right[source];
    }
    job.sources = job.masks + (residual != 0);
    job.powers = address(powers);
    job.sums = address(sums);
    const Mixture mixture = planes(base, channel, part, row, rows, bins);
    float peak;
    const Share share = {.mixture = &mixture, .moments = &job};
    Py_BEGIN_ALLOW_THREADS peak = on_threads(share, bins, threads);
    Py_END_ALLOW_THREADS return PyFloat_FromDouble(peak);
}

static PyObject *gains(PyObject *module, PyObject *arguments) {
    unsigned long long base, powers, basis, rotated, back, estimates, following, sums;
    Py_ssize_t channel, part, row, rows, bins;
    PyObject *wanted;
    Gains job;
    int threads;
    if (!PyArg_ParseTuple(arguments, "KnnnnnnKKKKO!fKnnnKKi", &base, &channel, &part, &row, &rows, &bins, &job.sources,
                          &powers, &basis, &rotated, &back, &PyTuple_Type, &wanted, &job.noise, &estimates, &job.source,
                          &job.channel, &job.row, &following, &sums, &threads))
        return NULL;
    job.wanted = numbers(wanted, job.which);
    if (PyErr_Occurred())
        return NULL;
    job.powers = address(powers);
    job.basis = address(basis);
    job.rotated = address(rotated);
    job.back = address(back);
    job.estimates = address(estimates);
    job.following = address(following);
    job.sums = address(sums);
    const Mixture mixture = planes(base, channel, part, row, rows, bins);
    const Share share = {.mixture = &mixture, .gains = &job};
    Py_BEGIN_ALLOW_THREADS on_threads(share, bins, threads);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyObject *magnitude(PyObject *module, PyObject *arguments) {
    unsigned long long spectrum, result;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(arguments, "KKn", &spectrum, &result, &count))
        return NULL;
    Py_BEGIN_ALLOW_THREADS loops->magnitude(address(spectrum), address(result), count);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyObject *split(PyObject *module, PyObject *arguments) {
    unsigned long long spectrum, result;
    Split job;
    int threads;
    if (!PyArg_ParseTuple(arguments, "KnnnnnKnnni", &spectrum, &job.spectrum_row, &job.spectrum_channel, &job.rows,
                          &job.channels, &job.bins, &result, &job.channel, &job.part, &job.row, &threads))
        return NULL;
    job.spectrum = address(spectrum);
    job.parts = address(result);
    const Share share = {.split = &job};
    Py_BEGIN_ALLOW_THREADS on_threads(share, job.rows, threads);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyObject *add(PyObject *module, PyObject *arguments) {
    unsigned long long frames, window, sums;
    Py_ssize_t rows, size, hop;
    if (!PyArg_ParseTuple(arguments, "KKKnnn", &frames, &window, &sums, &rows, &size, &hop))
        return NULL;
    Py_BEGIN_ALLOW_THREADS loops->add(address(frames), address(window), address(sums), rows, size, hop);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"moments", moments, METH_VARARGS, NULL}, {"gains", gains, METH_VARARGS, NULL},
    {"magnitude", magnitude, METH_VARARGS, NULL}, {"split", split, METH_VARARGS, NULL},
    {"add", add, METH_VARARGS, NULL}, {NULL},
};

static int fill(PyObject *module) {
    choose();
    return PyModule_AddIntConstant(module, "LAYOUT", LAYOUT);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_planar", NULL, 0, methods, slots};

PyMODINIT_FUNC PyInit__planar(void) { return PyModuleDef_Init(&definition); }
