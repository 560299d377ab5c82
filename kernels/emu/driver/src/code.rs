//! What a call answers: the driver's result codes.

use std::ffi::CStr;

/// Defines [`Code`] with the name and meaning of each.
macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal, $meaning:literal;)+) => {
        /// Why a call fails. Zero, success, is `Ok(())`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code {
            $(#[doc = $meaning] $name = $number),+
        }

        impl Code {
            /// The name and meaning of a number, success included.
            pub(crate) fn describe(number: u32) -> Option<(&'static CStr, &'static CStr)> {
                let (name, meaning) = match number {
                    0 => ("CUDA_SUCCESS\0", "done\0"),
                    $($number => (concat!($text, "\0"), concat!($meaning, "\0")),)+
                    _ => return None,
                };
                let text = |text: &'static str| CStr::from_bytes_with_nul(text.as_bytes()).ok();
                text(name).zip(text(meaning))
            }
        }
    };
}

codes! {
    InvalidValue = 1, "CUDA_ERROR_INVALID_VALUE", "an argument is outside of what the call takes";
    OutOfMemory = 2, "CUDA_ERROR_OUT_OF_MEMORY", "not enough memory";
    NotInitialised = 3, "CUDA_ERROR_NOT_INITIALIZED", "cuInit was not called";
    DeviceUnavailable = 46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "the card cannot be used";
    NoDevice = 100, "CUDA_ERROR_NO_DEVICE", "there is no card";
    InvalidDevice = 101, "CUDA_ERROR_INVALID_DEVICE", "there is no card of this number";
    InvalidImage = 200, "CUDA_ERROR_INVALID_IMAGE", "this is no kernel image";
    InvalidContext = 201, "CUDA_ERROR_INVALID_CONTEXT", "no context is current, or it is not one";
    NoBinaryForGpu = 209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "the code is for a newer card";
    PeerAccessUnsupported = 217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "the cards cannot read each other";
    InvalidPtx = 218, "CUDA_ERROR_INVALID_PTX", "the PTX does not compile";
    UnsupportedPtxVersion = 222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX is newer than the driver";
    FileNotFound = 301, "CUDA_ERROR_FILE_NOT_FOUND", "no such file";
    InvalidHandle = 400, "CUDA_ERROR_INVALID_HANDLE", "no live object of this context has this handle";
    IllegalState = 401, "CUDA_ERROR_ILLEGAL_STATE", "the object is not in a state for this call";
    NotFound = 500, "CUDA_ERROR_NOT_FOUND", "nothing has this name";
    NotReady = 600, "CUDA_ERROR_NOT_READY", "the work is not done yet";
    IllegalAddress = 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "the card touched memory that it does not own";
    LaunchTimeout = 702, "CUDA_ERROR_LAUNCH_TIMEOUT", "a kernel took too long";
    ContextIsDestroyed = 709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context was released";
    HostMemoryAlreadyRegistered = 712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "it is pinned already";
    HostMemoryNotRegistered = 713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "it is not pinned";
    MisalignedAddress = 716, "CUDA_ERROR_MISALIGNED_ADDRESS", "the card touched memory across its alignment";
    LaunchFailed = 719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed";
    NotSupported = 801, "CUDA_ERROR_NOT_SUPPORTED", "the stand-in driver does not do this";
    CaptureUnsupported = 900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not while a stream is captured";
    CaptureInvalidated = 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "an earlier call broke the capture";
    CaptureMerge = 902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "two captures would become one";
    CaptureUnmatched = 903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture did not begin on this stream";
    CaptureUnjoined = 904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "a forked stream did not join again";
    CaptureIsolation = 905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "a captured stream would wait for work outside";
    CaptureImplicit = 906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "the default stream would wait for a capture";
    CapturedEvent = 907, "CUDA_ERROR_CAPTURED_EVENT", "the event was last recorded in a capture";
    CaptureWrongThread = 908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "the capture began on another thread";
    Unknown = 999, "CUDA_ERROR_UNKNOWN", "a failure of unknown kind";
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn each_code_has_its_name_and_no_other_number_has_one() {
        let (name, _) = Code::describe(Code::CaptureImplicit as u32).expect("a known code");
        assert_eq!(name.to_bytes(), b"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT");
        assert_eq!((0..2000).filter(|&number| Code::describe(number).is_some()).count(), 36);
        assert_eq!(Code::describe(12345), None);
    }
}
