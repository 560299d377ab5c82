//! What host code may look up and this driver does not do.

use crate::boundary::export_unsupported;

export_unsupported! {
    cuCtxCreate_v2 cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig cuCtxGetLimit cuCtxSetCacheConfig
    cuCtxSetFlags cuCtxSetLimit
    cuDestroyExternalMemory cuExternalMemoryGetMappedBuffer cuImportExternalMemory
    cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceSetMemPool
    cuEventElapsedTime_v2
    cuGetProcAddress cuGetProcAddress_v2
    cuGraphClone cuGraphInstantiate
    cuLaunchCooperativeKernel cuLaunchHostFunc cuLaunchKernelEx
    cuMemAdvise cuMemAdvise_v2 cuMemAllocFromPoolAsync cuMemAllocManaged cuMemHostGetDevicePointer_v2
    cuMemPoolCreate cuMemPoolDestroy cuMemPoolGetAttribute cuMemPoolSetAttribute cuMemPoolTrimTo cuMemPrefetchAsync
    cuMemPrefetchAsync_v2 cuMemcpyPeer
    cuModuleGetGlobal_v2
    cuOccupancyMaxActiveClusters cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags
    cuOccupancyMaxPotentialClusterSize
    cuPointerGetAttribute cuPointerGetAttributes
    cuProfilerStart cuProfilerStop
    cuStreamAttachMemAsync cuStreamGetCaptureInfo_v2 cuThreadExchangeStreamCaptureMode
}
