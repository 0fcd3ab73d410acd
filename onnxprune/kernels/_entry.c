/* The native library of the Python package: operators whose kernels numba compiles on this machine.
 *
 * Python hands over the address of the compiled driver through connect(). Nothing that onnxruntime may call late belongs
 * to Python, so that sessions may outlive the interpreter.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_ops.h"
#include "_steps.h"

static const char *make_ready(void) { return NULL; } /* a node without compiled kernels says so */

static int lacks(int format, int kind) { return (void)format, (void)kind, 0; }

static Status *add_more(Api api, void *domain) {
    fill_step_operator();
    return CALL(api, 27, DomainAdd)(domain, &step_operator);
}

static PyObject *connect(PyObject *self, PyObject *address) {
    (void)self;
    void *pointer = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return NULL;
    atomic_store(&entry, (Entry)(uintptr_t)pointer);
    Py_RETURN_NONE;
}

static PyObject *connected(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    return PyBool_FromLong(atomic_load(&entry) != NULL);
}

static PyObject *memory(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    return PyLong_FromSize_t(idle_bytes());
}

static PyObject *connect_steps(PyObject *self, PyObject *address) {
    (void)self;
    void *pointer = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return NULL;
    atomic_store(&steps_entry, (Entry)(uintptr_t)pointer);
    Py_RETURN_NONE;
}

static PyObject *steps_connected(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    return PyBool_FromLong(atomic_load(&steps_entry) != NULL);
}

static PyMethodDef methods[] = {
    {"connect", connect, METH_O, "Take the address of the compiled driver; it must live as long as the process."},
    {"connected", connected, METH_NOARGS, "Whether connect() was called."},
    {"connect_steps", connect_steps, METH_O, "As connect(), the driver of the kernels of training."},
    {"steps_connected", steps_connected, METH_NOARGS, "Whether connect_steps() was called."},
    {"memory", memory, METH_NOARGS, "Bytes of scratch memory kept for the next run."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_entry", "The custom operator library.", -1, methods,
                                    NULL, NULL, NULL, NULL};
EXPORT PyObject *PyInit__entry(void) {
#ifndef _WIN32
    pthread_atfork(before_fork, after_fork, after_fork);
#endif
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddStringConstant(made, "STAMP", STAMP)) Py_CLEAR(made);
    if (made && PyModule_AddStringConstant(made, "STEPS_STAMP", STEPS_STAMP)) Py_CLEAR(made);
    return made;
}
