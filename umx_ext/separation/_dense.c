/* The compiled loops for Python: _dense.h says what they are given, umx_ext/separation/dense.py explains them. */

#include "_dense.h"

#ifdef LOOPS

/* How many outputs a panel has for vectors of AVX2; 0 where there are none. */
static int avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 16 : 0;
}

/* How many it has for the loops that are best here; 0 if torch is faster than the loops, or they are not for it. */
static int best(void) {
    __builtin_cpu_init();
#ifdef LOOPS_512
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        return 32;
#endif
    return __builtin_cpu_supports("avx512f") ? 0 : avx2();
}

static void multiply(const Product *job, float *side) {
#ifdef LOOPS_512
    if (job->matrix.wide == 32) {
        multiply_512(job, side);
        return;
    }
#endif
    multiply_256(job, side);
}

static void run(const Lstm *job, float *side) {
#ifdef LOOPS_512
    if (job->matrix.wide == 32) {
        run_512(job, side);
        return;
    }
#endif
    run_256(job, side);
}

#else

static int avx2(void) { return 0; }
static int best(void) { return 0; }
static void multiply(const Product *job, float *side) { (void)job, (void)side; }
static void run(const Lstm *job, float *side) { (void)job, (void)side; }

#endif

/* Addresses and shapes come from dense.py, which has checked them: of the same LAYOUT. The interpreter is not held. */

#define LAYOUT 4

static void *address(unsigned long long value) { return (void *)(uintptr_t)value; }

/* For `multiply`; NULL, and an exception, when there is none. Not on the stack: other threads' may be small. */
static float *space(Py_ssize_t rows, Py_ssize_t inputs) {
    float *side = PyMem_RawMalloc(sizeof(float) * (block(rows) + TALL) * (inputs < MOST_DEEP ? inputs : MOST_DEEP));
    if (!side)
        PyErr_NoMemory();
    return side;
}

static PyObject *product(PyObject *module, PyObject *arguments) {
    unsigned long long panels, factors, steps, rows, bias, result;
    Product job;
    if (!PyArg_ParseTuple(arguments, "KKKnniKnKKnnii", &panels, &factors, &steps, &job.matrix.inputs,
                          &job.matrix.outputs, &job.matrix.wide, &rows, &job.row, &bias, &result, &job.line, &job.count,
                          &job.add, &job.then))
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
    if (!PyArg_ParseTuple(arguments, "KKKnniKnnKKKnnnnn", &panels, &factors, &steps, &job.matrix.inputs,
                          &job.matrix.outputs, &job.matrix.wide, &gates, &job.gates_lane, &job.gates_step, &hidden, &cell, &result,
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
    return PyModule_AddIntConstant(module, "LAYOUT", LAYOUT) || PyModule_AddIntConstant(module, "MOST", MOST) ||
           PyModule_AddIntConstant(module, "BEST", best()) || PyModule_AddIntConstant(module, "AVX2", avx2());
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
