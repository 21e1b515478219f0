/* What HBN_INSTRUCTION_SET and HBN_NUM_THREADS do: environment_test STATUS TEXT. STATUS is what calls return; TEXT
 * begins the error, or is the number of threads or the instruction set in use. */
#include <hbn/hbn.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "%s:%d: %s is false (last error: %s)\n", __FILE__, __LINE__, \
                    #condition, hbn_last_error());                                       \
            failures++;                                                                  \
        }                                                                                \
    } while (0)

static hbn_status forward(float y_value) {
    float x_data[2] = {1, 3}, y_data[2] = {7, 7};
    const hbn_tensor x = {x_data, HBN_FLOAT32, HBN_CPU, 4, {2, 1, 1, 1}, {1, 1, 1, 1}};
    hbn_tensor y = x;
    y.data = y_data;
    const hbn_status status =
        hbn_batch_norm_forward(&x, NULL, NULL, NULL, NULL, 1, 0.1, 1e-5, &y, NULL, NULL);
    CHECK(status == HBN_OK ? y_data[0] < 0 : y_data[0] == y_value);
    return status;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        return 2;
    }
    const hbn_status expected = (hbn_status)atoi(argv[1]);
    const char *text = argv[2];
    hbn_context *context = NULL;
    char threads[16];
    /* Not only once. */
    CHECK(forward(7) == expected);
    CHECK(forward(7) == expected);
    CHECK(hbn_context_create(NULL, &context) == expected);
    if (expected == HBN_OK) {
        snprintf(threads, sizeof(threads), "%d", hbn_get_num_threads());
        CHECK(strcmp(text, threads) == 0 || strcmp(text, hbn_instruction_set()) == 0);
        hbn_context_destroy(context);
        return failures != 0;
    }
    CHECK(context == NULL);
    CHECK(strncmp(hbn_last_error(), text, strlen(text)) == 0);

    /* What doesn't depend on the environment works. */
    {
        const char *sets = hbn_instruction_sets();
        const char *comma = strrchr(sets, ',');
        const char *lowest = comma ? comma + 1 : sets;
        const hbn_context_options options = {.num_threads = 1, .instruction_set = lowest};
        hbn_context *before;
        CHECK(hbn_context_create(&options, &context) == HBN_OK);
        before = hbn_use_context(context);
        CHECK(before == NULL);
        CHECK(forward(7) == HBN_OK);
        CHECK(hbn_use_context(before) == context);
        hbn_context_destroy(context);
        CHECK(forward(7) == expected);

        CHECK(hbn_set_instruction_set(lowest) == HBN_OK);
        CHECK(hbn_set_num_threads(1) == HBN_OK);
        CHECK(strcmp(hbn_instruction_set(), lowest) == 0);
        CHECK(forward(7) == HBN_OK);
    }
    return failures != 0;
}
