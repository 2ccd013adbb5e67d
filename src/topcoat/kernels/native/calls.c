/* Calls that were put down make themselves one after the other; calls.py says why. */
#include <stdint.h>

struct call {
    void (*function)(const void *argument);
    const void *argument;
};

void topcoat_make_calls(const struct call *calls, int64_t n) {
    for (int64_t i = 0; i < n; i++) calls[i].function(calls[i].argument);
}
