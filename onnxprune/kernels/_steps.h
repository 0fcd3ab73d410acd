/* The operators that training sessions have beside those of ONNX; never in a file. Included by _entry.c.
 *
 * One operator serves all kernels: attribute `kernel` is its number, `params` are its own. What a run needs is one table
 * of int64 (steps/tables.py): kernel, params, then type, rank, dims and address of every input and output. The compiled
 * code is asked for the dims of the outputs and the division of the work first (PLAN), then for every task.
 */
#include "_steps_tables.h"

static _Atomic(Entry) steps_entry;

typedef struct {
    Api api;
    int64_t kernel, params[STEP_PARAMS];
    char name[256];
} Step;

static Operator step_operator;

static void step_destroy(void *kernel) {
    if (!kernel) return;
    free(kernel);
    if (atomic_fetch_sub(&kernels, 1) == 1) drop_idle();
}

static Status *step_create(const void *op_, Api api, const void *info, void **kernel) {
    (void)op_;
    *kernel = NULL;
    if (!atomic_load(&steps_entry)) return error(api, "Step", "the kernels of training are not compiled");
    Step *s = calloc(1, sizeof *s);
    if (!s) return error(api, "Step", "out of memory");
    s->api = api;
    atomic_fetch_add(&kernels, 1);
    size_t size = sizeof s->name, count = STEP_PARAMS;
    Status *status = CALL(api, 244, GetNodeName)(info, s->name, &size);
    if (status) CALL(api, 93, Release)(status);
    status = CALL(api, 86, GetInt)(info, "kernel", &s->kernel);
    if (!status) status = CALL(api, 163, GetInts)(info, "params", s->params, &count);
    if (status)
        step_destroy(s);
    else
        *kernel = s;
    return status;
}

typedef struct {
    int64_t *table, what;
    size_t scratch_bytes;
    atomic_int failed;
} StepWork;

static void step_task(void *user, size_t index) {
    StepWork *w = user;
    void *scratch = w->scratch_bytes ? take(w->scratch_bytes) : NULL;
    if (w->scratch_bytes && !scratch) {
        atomic_store(&w->failed, NO_MEMORY);
        return;
    }
    atomic_load(&steps_entry)(w->what, (int64_t)(uintptr_t)w->table, (int64_t)index, (int64_t)(uintptr_t)scratch, 0);
    if (scratch && !intact(scratch, w->scratch_bytes)) atomic_store(&w->failed, OVERRAN);
    give(scratch);
}

static Status *step_parallel(Step *s, void *context, int64_t *table, int64_t what, int64_t tasks, int64_t bytes) {
    StepWork work = {table, what, (size_t)bytes, 0};
    if (tasks == 1)
        step_task(&work, 0);
    else if (tasks > 1)
        TRY(CALL(s->api, 274, ParallelFor)(context, step_task, (size_t)tasks, 0, &work));
    int failed = atomic_load(&work.failed);
    if (failed == OVERRAN) return error(s->api, s->name, "internal error: a task left its memory");
    return failed ? error(s->api, s->name, "out of memory") : NULL;
}

/* what the table says of a tensor */
static Status *step_tensor(Step *s, const void *value, int64_t *row) {
    int type = 0, rank = 0;
    void *data = NULL;
    int64_t dims[AXES_MOST];
    TRY(shape(s->api, value, &type, &rank, dims));
    if (rank < 0) return error(s->api, s->name, "a tensor has more than %d axes", AXES_MOST);
    TRY(CALL(s->api, 51, GetData)(value, &data));
    row[STEP_TYPE] = type;
    row[STEP_RANK] = rank;
    row[STEP_ADDRESS] = (int64_t)(uintptr_t)data;
    memcpy(row + STEP_DIMS, dims, (size_t)rank * sizeof *dims);
    return NULL;
}

static Status *step_compute(void *kernel, void *context) {
    Step *s = kernel;
    Entry run = atomic_load(&steps_entry);
    int64_t t[STEP_FIELDS] = {0}, address = (int64_t)(uintptr_t)t;
    size_t inputs = 0, outputs = 0;
    TRY(CALL(s->api, 88, GetCount)(context, &inputs));
    TRY(CALL(s->api, 89, GetCount)(context, &outputs));
    if (inputs > STEP_INPUTS_MOST || outputs > STEP_OUTPUTS_MOST)
        return error(s->api, s->name, "too many inputs or outputs");
    t[STEP_KERNEL] = s->kernel;
    t[STEP_INPUTS] = (int64_t)inputs;
    t[STEP_OUTPUTS] = (int64_t)outputs;
    memcpy(t + STEP_PARAMS_AT, s->params, sizeof s->params);
    for (size_t i = 0; i < inputs; i++) {
        const void *value = NULL;
        TRY(CALL(s->api, 90, GetInput)(context, i, &value));
        if (!value) return error(s->api, s->name, "an input is missing");
        TRY(step_tensor(s, value, t + STEP_INPUTS_AT + i * STEP_ROW));
    }
    if (run(STEP_PLAN, address, 0, 0, 0)) return error(s->api, s->name, "the shapes of its inputs do not fit");
    for (size_t i = 0; i < outputs; i++) {
        int64_t *row = t + STEP_OUTPUTS_AT + i * STEP_ROW;
        void *value = NULL, *data = NULL;
        TRY(CALL(s->api, 91, GetOutput)(context, i, row + STEP_DIMS, (size_t)row[STEP_RANK], &value));
        TRY(CALL(s->api, 51, GetData)(value, &data));
        row[STEP_ADDRESS] = (int64_t)(uintptr_t)data;
    }
    void *shared = NULL;
    size_t bytes = (size_t)t[STEP_SHARED_BYTES];
    if (bytes && !(shared = take(bytes))) return error(s->api, s->name, "out of memory");
    t[STEP_SHARED] = (int64_t)(uintptr_t)shared;
    Status *status = step_parallel(s, context, t, STEP_PREPARE, t[STEP_PREPARE_TASKS], 0);
    if (!status) status = step_parallel(s, context, t, STEP_RUN, t[STEP_TASKS], t[STEP_TASK_BYTES]);
    if (!status && shared && !intact(shared, bytes))
        status = error(s->api, s->name, "internal error: a task left its memory");
    give(shared);
    return status;
}

static int step_any(const void *op, size_t index) { return (void)op, (void)index, 0; }
static int step_float(const void *op, size_t index) { return (void)op, (void)index, ONNX_FLOAT; }
static int step_variadic(const void *op, size_t index) { return (void)op, (void)index, 2; }
static int step_mixed(const void *op) { return (void)op, 0; }

static void fill_step_operator(void) {
    Operator *op = &step_operator;
    snprintf(op->label, sizeof op->label, "Step");
    op->version = API_VERSION;
    op->name = op_name;
    op->provider = op_provider;
    op->input_type = step_any;
    op->output_type = step_float;
    op->input_count = op->output_count = op_outputs;
    op->destroy = step_destroy;
    op->input_characteristic = op->output_characteristic = step_variadic;
    op->input_memory = op_required;
    op->variadic_input_minimum = op->variadic_output_minimum = op->variadic_output_homogeneous = op_one;
    op->variadic_input_homogeneous = step_mixed;
    op->create = step_create;
    op->compute_v2 = step_compute;
    op->first_version = op_one;
    op->last_version = op_newest;
}
