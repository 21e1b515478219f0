/* Kernels' parallel loops, for the hbn_parallel_for() that a pack's user defines. */
#include "pack.h"

typedef struct loop {
    halide_task_t task;
    int first;
    uint8_t *closure;
} loop;

static void run_one(int i, void *context) {
    const loop *l = context;
    l->task(NULL, l->first + i, l->closure);
}

int halide_do_par_for(void *user_context, halide_task_t task, int first, int count,
                      uint8_t *closure) {
    loop l;
    (void)user_context;
    l.task = task;
    l.first = first;
    l.closure = closure;
    hbn_parallel_for(run_one, count, &l);
    return 0;
}
