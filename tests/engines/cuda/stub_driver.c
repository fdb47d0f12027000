/* A CUDA driver that does at once, in host memory, what it is asked to enqueue: with it cuda.core itself runs without a
   GPU. What is captured is let pass: a graph does nothing. Everything else is "not supported". */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_SUPPORTED = 801 };
enum { CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum { MAJOR = 75, MINOR = 76, MEMORY_POOLS_SUPPORTED = 115 };

static char context[8], pool[8], graph[8], executable[8];
static __thread void *current;
static size_t used, limit = 1 << 30;
static int capturing, invalidated;

#define HERE (current ? SUCCESS : INVALID_CONTEXT)
#define NEW(place) (*(place) = current ? malloc(8) : NULL, HERE)

static int init(unsigned flags) { return SUCCESS; }
static int version(int *found) { *found = 13050; return SUCCESS; }
static int count(int *found) { *found = 1; return SUCCESS; }
static int device(int *found, int number) { *found = number; return SUCCESS; }
static int name(char *found, int length, int number) { strncpy(found, "Stub GPU", length); return SUCCESS; }
static int attribute(int *found, int which, int number) {
    const char *without = getenv("STUB_WITHOUT_POOLS");
    *found = which == MAJOR ? 9 : which == MINOR ? 0 : which == MEMORY_POOLS_SUPPORTED ? !without : 1;
    return SUCCESS;
}
static int retain_context(void **found, int number) { *found = context; return SUCCESS; }
static int get_context(void **found) { *found = current; return SUCCESS; }
static int set_context(void *given) { current = given; return SUCCESS; }
static int pop_context(void **found) { *found = current; current = NULL; return SUCCESS; }
static int context_device(int *found) { *found = 0; return HERE; }
static int priorities(int *least, int *greatest) { *least = 0; *greatest = -5; return HERE; }
static int stream_create(void **found, unsigned flags, int priority) { return NEW(found); }
static int stream_context(void *stream, void **found) { *found = context; return SUCCESS; }
static int destroy(void *thing) { free(thing); return SUCCESS; }
static int synchronize(void *stream) {
    invalidated = capturing;
    return capturing ? CAPTURE_UNSUPPORTED : HERE;
}
static int wait_event(void *stream, void *event, unsigned flags) { return HERE; }
static int event_create(void **found, unsigned flags) { return NEW(found); }
static int event_record(void *event, void *stream) { return HERE; }
static int event_synchronize(void *event) { return HERE; }
static int get_pool(void **found, int number) { *found = pool; return SUCCESS; }
static int pool_get(void *which, int what, uint64_t *value) { *value = 0; return SUCCESS; }
static int pool_set(void *which, int what, uint64_t *value) { return SUCCESS; }
static int pool_trim(void *which, size_t keep) { return which == pool ? SUCCESS : NOT_SUPPORTED; }
static int allocate(size_t **found, size_t size) {
    if (used + size > limit) return OUT_OF_MEMORY;
    size_t *block = malloc(size + 16);
    *block = size;
    used += size;
    *found = memset(block + 2, 0xff, size);
    return HERE;
}
static int allocate_async(size_t **found, size_t size, void *from, void *stream) { return allocate(found, size); }
static int release(size_t *address) { used -= address[-2]; free(address - 2); return SUCCESS; }
static int allocate_host(void **found, size_t size) { *found = memset(malloc(size), 0x7f, size); return HERE; }
static int info(size_t *left, size_t *all) { *left = limit - used; *all = limit; return HERE; }
static int copy(void *to, void *from, size_t size, void *stream) { memmove(to, from, size); return HERE; }
static int fill(void *to, unsigned char value, size_t size, void *stream) { memset(to, value, size); return HERE; }
static int is_capturing(void *stream, int *found) { *found = invalidated ? 2 : capturing; return SUCCESS; }
static int capture_info(void *stream, int *found, uint64_t *id, void **into) {
    if (into) *into = graph;
    return is_capturing(stream, found);
}
static int begin_capture(void *stream, int mode) { capturing = 1; return mode == 1 ? SUCCESS : NOT_SUPPORTED; }
static int end_capture(void *stream, void **found) {
    int wrong = invalidated;
    capturing = invalidated = 0;
    *found = wrong ? NULL : graph;
    return wrong ? CAPTURE_INVALIDATED : SUCCESS;
}
static int new_graph(void **found, unsigned flags) { *found = graph; return SUCCESS; }
static int instantiate(void **found, void *from, void *how) {
    *found = executable;
    return from == graph ? SUCCESS : NOT_SUPPORTED;
}
static int user_object(void **found, void *thing, void *end, unsigned count, unsigned flags) {
    *found = graph;
    return SUCCESS;
}
static int launch(void *which, void *stream) { return which == executable ? HERE : NOT_SUPPORTED; }
static int leave(void *thing) { return SUCCESS; }
static int error_name(int error, const char **found) {
    *found = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
           : error == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
           : error == CAPTURE_UNSUPPORTED ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : "CUDA_ERROR_NOT_SUPPORTED";
    return SUCCESS;
}
static int error_string(int error, const char **found) { *found = "what the driver says of it"; return SUCCESS; }
static int unsupported(void) { return NOT_SUPPORTED; }

static const struct { const char *name; void *function; } known[] = {
    {"cuInit", init}, {"cuDriverGetVersion", version}, {"cuDeviceGetCount", count}, {"cuDeviceGet", device},
    {"cuDeviceGetName", name}, {"cuDeviceGetAttribute", attribute}, {"cuDevicePrimaryCtxRetain", retain_context},
    {"cuDevicePrimaryCtxRelease", leave}, {"cuCtxGetCurrent", get_context}, {"cuCtxSetCurrent", set_context},
    {"cuCtxPushCurrent", set_context}, {"cuCtxPopCurrent", pop_context}, {"cuCtxGetDevice", context_device},
    {"cuCtxGetStreamPriorityRange", priorities}, {"cuStreamCreateWithPriority", stream_create},
    {"cuStreamDestroy", destroy}, {"cuStreamGetCtx", stream_context}, {"cuStreamSynchronize", synchronize},
    {"cuStreamWaitEvent", wait_event}, {"cuStreamIsCapturing", is_capturing},
    {"cuStreamGetCaptureInfo", capture_info}, {"cuStreamBeginCapture", begin_capture},
    {"cuStreamEndCapture", end_capture},
    {"cuEventCreate", event_create}, {"cuEventDestroy", destroy}, {"cuEventRecord", event_record},
    {"cuEventSynchronize", event_synchronize}, {"cuDeviceGetMemPool", get_pool},
    {"cuMemPoolGetAttribute", pool_get}, {"cuMemPoolSetAttribute", pool_set}, {"cuMemPoolTrimTo", pool_trim},
    {"cuMemAllocFromPoolAsync", allocate_async}, {"cuMemFreeAsync", release}, {"cuMemAlloc", allocate},
    {"cuMemFree", release}, {"cuMemAllocHost", allocate_host}, {"cuMemFreeHost", destroy}, {"cuMemGetInfo", info},
    {"cuMemcpyAsync", copy}, {"cuMemsetD8Async", fill}, {"cuGraphCreate", new_graph},
    {"cuGraphInstantiateWithParams", instantiate}, {"cuGraphLaunch", launch}, {"cuGraphExecDestroy", leave},
    {"cuGraphDestroy", leave}, {"cuUserObjectCreate", user_object}, {"cuUserObjectRelease", leave},
    {"cuGraphRetainUserObject", leave}, {"cuGraphReleaseUserObject", leave}, {"cuGetErrorName", error_name},
    {"cuGetErrorString", error_string},
};

int cuGetProcAddress_v2(const char *symbol, void **function, int cuda, uint64_t flags, int *status) {
    *function = strcmp(symbol, "cuGetProcAddress") ? (void *)unsupported : (void *)cuGetProcAddress_v2;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(symbol, known[i].name)) *function = known[i].function;
    if (status) *status = 0;
    return SUCCESS;
}
