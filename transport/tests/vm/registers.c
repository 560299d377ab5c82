/* Lets user-mode Linux 6.1 run where the processor has more vector registers than it has room for.
 *
 * It keeps a process's registers in a buffer of fixed size. Linux hands out as much as fits, but takes back nothing
 * less than all of it. So what comes back is completed here, by what the process has in the registers beyond. */
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PEEK_FIRST = 1, PEEK_LAST = 3, GET_SET = 0x4204, SET_SET = 0x4205, VECTORS = 0x202 };
enum { MOST_BYTES = 1 << 15, STATE_MASK_AT = 512 };
/* x87, SSE, AVX and AVX-512: what the buffer may say about. */
static const unsigned long long KNOWN = 0xe7;

static long call(int request, pid_t process, void *address, void *data) {
    return syscall(SYS_ptrace, (long)request, (long)process, address, data);
}

static long set_vectors(pid_t process, void *address, const struct iovec *given) {
    static _Thread_local unsigned char state[MOST_BYTES] __attribute__((aligned(64)));
    struct iovec whole = {state, sizeof state};
    unsigned long long mask;
    if (call(GET_SET, process, address, &whole) < 0) return -1;
    if (given->iov_len < whole.iov_len) {
        memcpy(state, given->iov_base, given->iov_len);
    } else {
        memcpy(state, given->iov_base, whole.iov_len);
    }
    memcpy(&mask, state + STATE_MASK_AT, sizeof mask);
    mask &= KNOWN;
    memcpy(state + STATE_MASK_AT, &mask, sizeof mask);
    return call(SET_SET, process, address, &whole);
}

long ptrace(int request, ...) {
    va_list rest;
    va_start(rest, request);
    pid_t process = va_arg(rest, pid_t);
    void *address = va_arg(rest, void *), *data = va_arg(rest, void *);
    va_end(rest);
    if (request == SET_SET && (size_t)address == VECTORS) return set_vectors(process, address, data);
    if (request >= PEEK_FIRST && request <= PEEK_LAST) {
        /* The C library returns the word; the system writes it. */
        long word = 0;
        if (call(request, process, address, &word) < 0) return -1;
        errno = 0;
        return word;
    }
    return call(request, process, address, data);
}
