/* The part of NVML that the probe calls. STUB_MODE, read at every call, chooses how it misbehaves. */
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9, LOST = 15, MISMATCH = 18 };

#define GIB (1ULL << 30)
#define GPUS 2

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;

static int sessions = 0;
static const char *uuids[GPUS] = {"GPU-00000000-aaaa", "GPU-11111111-bbbb"};

static int mode(const char *name) {
    const char *chosen = getenv("STUB_MODE");
    return chosen && strcmp(chosen, name) == 0;
}

int stub_sessions(void) { return sessions; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (mode("no-driver")) return NO_DRIVER;
    if (mode("mismatch")) return MISMATCH;
    sessions++;
    return OK;
}

int nvmlShutdown(void) { sessions--; return OK; }

const char *nvmlErrorString(int code) { (void)code; return "stub error"; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = mode("no-gpu") ? 0 : GPUS; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= GPUS) return INVALID;
    *device = (void *)(unsigned long)(index + 1);
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    for (unsigned index = 0; index < GPUS; index++)
        if (strcmp(uuid, uuids[index]) == 0) return nvmlDeviceGetHandleByIndex_v2(index, device);
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    strncpy(uuid, uuids[(unsigned long)device - 1], length);
    return OK;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    strncpy(name, (unsigned long)device == 1 ? "Stub 5060 Ti" : "Stub A4000", length);
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    (void)device;
    if (mode("lost")) return LOST;
    if (mode("no-memory")) return NOT_SUPPORTED;
    if (memory->version != 0x02000028) return INVALID;
    memory->total = 16 * GIB;
    memory->reserved = GIB / 2;
    memory->used = 3 * GIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return OK;
}

static int list(unsigned *count, Process *processes, unsigned pid, unsigned long long used) {
    if (mode("no-processes")) return NOT_SUPPORTED;
    if (*count < 1) { *count = 1; return TOO_SMALL; }
    memset(processes, 0, sizeof *processes);
    processes[0].pid = pid;
    processes[0].used = mode("no-process-memory") ? ~0ULL : used;
    *count = 1;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
    (void)device;
    const char *pid = getenv("STUB_PID");
    return list(count, processes, pid ? (unsigned)atoi(pid) : 1, 2 * GIB);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
    (void)device;
    return list(count, processes, 4194305, GIB); /* above the largest pid there can be */
}
