/* The library that stands in for the driver's, and what the driver and the GPU are. */
#include "../gpu/stub/libnvidia_ml.c"

static const char *text_of(const char *name, const char *otherwise) {
    const char *given = getenv(name);
    return given ? given : otherwise;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    strncpy(version, text_of("STUB_DRIVER", "580.95.05"), length);
    return OK;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return OK; }

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    (void)device;
    *major = 12;
    *minor = 0;
    return OK;
}

int nvmlDeviceGetDisplayActive(void *device, unsigned *active) {
    (void)device;
    if (getenv("STUB_NO_DISPLAY")) return NOT_SUPPORTED;
    *active = 1;
    return OK;
}
