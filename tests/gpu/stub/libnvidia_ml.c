/* The part of NVML that is called here, in the place of the driver's library.

   How it behaves is a line of words, read anew at every call: from the file that STUB_FILE names, else from
   STUB_MODE. A word is a fault (lost, no-driver, ...) or a value (used_gib=12). `driver=2` is a driver that was
   reloaded: a session begun under another number does not work any more.  */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7,
    NO_DRIVER = 9, TIMEOUT = 10, LOST = 15, RESET = 16, MISMATCH = 18, UNKNOWN = 999
};

#define GIB (1ULL << 30)

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned gpu, memory; } Utilization;

static int sessions = 0, inits = 0, asked_fan = 0;
static long driver = 0;
static const char *uuids[] = {"GPU-00000000-aaaa", "GPU-11111111-bbbb"};

static const char *words(void) {
    static char line[512];
    const char *path = getenv("STUB_FILE"), *given = getenv("STUB_MODE");
    if (!path) return given ? given : "";
    FILE *file = fopen(path, "r");
    if (!file || !fgets(line, sizeof line, file)) line[0] = 0;
    if (file) fclose(file);
    return line;
}

/* What follows the word `name` on the line, NULL when it is not there. */
static const char *after(const char *name) {
    size_t length = strlen(name);
    for (const char *at = words(); *at; at += strcspn(at, " \n")) {
        at += strspn(at, " \n");
        if (strncmp(at, name, length) == 0 && strchr("= \n", at[length])) return at + length;
    }
    return NULL;
}

static int mode(const char *name) { return after(name) != NULL; }

static long value(const char *name, long otherwise) {
    const char *found = after(name);
    return found && *found == '=' ? atol(found + 1) : otherwise;
}

/* What every call on a device answers before it does its own. */
static int fault(void) {
    if (!sessions) return UNINITIALIZED;
    if (mode("no-driver") || value("driver", 0) != driver) return UNKNOWN;
    if (mode("lost")) return LOST;
    return mode("reset") ? RESET : OK;
}

/* The same for a reading that a card may not support. */
static int reading(void) {
    if (mode("unsupported")) return NOT_SUPPORTED;
    if (mode("no-permission")) return NO_PERMISSION;
    if (mode("slow")) return TIMEOUT;
    return fault();
}

int stub_sessions(void) { return sessions; }
int stub_inits(void) { return inits; }
int stub_asked_fan(void) { return asked_fan; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (mode("no-driver")) return NO_DRIVER;
    if (mode("mismatch")) return MISMATCH;
    if (!sessions) driver = value("driver", 0);
    sessions++;
    inits++;
    return OK;
}

int nvmlShutdown(void) { sessions--; return OK; }

const char *nvmlErrorString(int code) { (void)code; return "stub error"; }

static unsigned gpus(void) { return mode("no-gpu") ? 0 : mode("one") ? 1 : 2; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = gpus(); return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= gpus()) return INVALID;
    *device = (void *)(unsigned long)(index + 1);
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    for (unsigned index = 0; index < gpus(); index++)
        if (strcmp(uuid, uuids[index]) == 0) return nvmlDeviceGetHandleByIndex_v2(index, device);
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(void *device, unsigned *index) { *index = (unsigned long)device - 1; return fault(); }

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
    if (mode("no-memory")) return NOT_SUPPORTED;
    if (memory->version != 0x02000028) return INVALID;
    memory->total = 16 * GIB;
    memory->reserved = GIB / 2;
    memory->used = (unsigned long long)value("used_gib", 3) * GIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return fault();
}

int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates) {
    (void)device;
    rates->gpu = (unsigned)value("busy", 87);
    rates->memory = 41;
    return reading();
}

int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius) {
    (void)device;
    *celsius = 64;
    return sensor ? INVALID : reading();
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { (void)device; *milliwatts = 151234; return reading(); }

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) {
    (void)device;
    *milliwatts = 180000;
    return reading();
}

int nvmlDeviceGetClockInfo(void *device, unsigned clock, unsigned *mhz) {
    (void)device;
    *mhz = clock == 1 ? 2407 : clock == 2 ? 13801 : 0;
    return reading();
}

int nvmlDeviceGetFanSpeed(void *device, unsigned *percent) {
    (void)device;
    asked_fan++;
    *percent = 38;
    return reading();
}

int nvmlDeviceGetPerformanceState(void *device, unsigned *state) { (void)device; *state = value("state", 1); return reading(); }

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    (void)device;
    *reasons = value("reasons", 4);
    return reading();
}

static int list(unsigned *count, Process *processes, unsigned pid, unsigned long long used) {
    if (mode("no-processes") || mode("unsupported")) return NOT_SUPPORTED;
    if (fault()) return fault();
    if (*count < 1) { *count = 1; return TOO_SMALL; }
    memset(processes, 0, sizeof *processes);
    processes[0].pid = pid;
    processes[0].used = mode("no-process-memory") ? ~0ULL : used;
    *count = 1;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
    (void)device;
    return list(count, processes, (unsigned)value("pid", 1), 2 * GIB);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *processes) {
    (void)device;
    return list(count, processes, 4194305, GIB); /* above the largest pid there can be */
}
