/* Products of rows with a matrix that was laid out for them, and the steps of an LSTM; umx_ext/separation/dense.py
 * explains them.
 *
 * A matrix (inputs, outputs) is kept in panels of two vectors of outputs, each (inputs, outputs), the last one filled up
 * with zeros. Vectors are of 8 numbers (AVX2) or of 16 (AVX-512); a matrix is laid out for the one or the other.
 *
 * A matrix of integers has two inputs together, (inputs / 2, outputs, 2), which one instruction multiplies and adds.
 * Rows are made integers when they are put side by side: each number times its input's factor, in steps of the row's
 * own size.
 */

#ifndef UMX_EXT_DENSE_H
#define UMX_EXT_DENSE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#define TALL 6     /* rows at a time */
#define NEAR 128   /* inputs that are summed by themselves, which keeps the roundings small */
#define BLOCK 192  /* rows, at most, that a part of the panels is used for: 400 kB */
#define MOST 2047  /* the largest integer: */
#define FAR 512    /* products of two of them add up to less than 2^31 */
#define MOST_DEEP 512

enum { NOTHING, RELU, SIGMOID, TANH };

typedef struct {
    const float *panels;    /* or integers, when there are factors */
    const float *factors;   /* (inputs,), or NULL */
    const float *steps;     /* of the integers, (outputs,) filled up like the panels */
    Py_ssize_t inputs, outputs;
    int wide;               /* outputs of a panel */
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
#define LOOPS

/* GCC knows the instructions since its version 8. */
#if defined(__clang__) || __GNUC__ >= 8
#define LOOPS_512
#endif

/* `side` has space for `block(count)` rows, of as many inputs as there are but at most MOST_DEEP. */
#pragma GCC visibility push(hidden)
void multiply_256(const Product *job, float *side), multiply_512(const Product *job, float *side);
void run_256(const Lstm *job, float *side), run_512(const Lstm *job, float *side);
#pragma GCC visibility pop

#endif
#endif
