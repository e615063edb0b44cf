// Filling memory with patterns that the driver's own fills (of 1, 2 and 4 bytes) cannot write. `target` is aligned to the pattern.

extern "C" __global__ void fill_u64(unsigned long long *target, unsigned long long value, unsigned long long count)
{
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step)
        target[at] = value;
}

extern "C" __global__ void fill_u128(ulonglong2 *target, unsigned long long low, unsigned long long high,
                                     unsigned long long count)
{
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step)
        target[at] = make_ulonglong2(low, high);
}
