//! Entry points that must be there because callers look them up, and that this device does not offer.

use super::entries;

macro_rules! unsupported {
    ($($name:ident)*) => { entries! { $(Driver fn $name(world) { Err(crate::code::NOT_SUPPORTED) })* } };
}

unsupported! {
    cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig cuCtxGetLimit cuCtxSetCacheConfig cuCtxSetLimit
    cuDestroyExternalMemory cuExternalMemoryGetMappedBuffer cuImportExternalMemory
    cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig
    cuLaunchCooperativeKernel cuLaunchKernelEx
    cuMemAdvise_v2 cuMemAllocManaged cuMemPrefetchAsync_v2 cuStreamAttachMemAsync
    cuMemExportToShareableHandle cuMemImportFromShareableHandle cuMemHostRegister_v2 cuMemHostUnregister
    cuModuleGetGlobal_v2 cuModuleLoad
    cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyMaxActiveClusters cuOccupancyMaxPotentialBlockSize
    cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyMaxPotentialClusterSize
    cuProfilerStart cuProfilerStop
}
