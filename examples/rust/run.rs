// Run a sparse model from Rust, without crates: run MODEL LIBRARY INPUT OUTPUT
// rustc -O --edition 2021 run.rs -l dylib=onnxruntime -L /folder/of/libonnxruntime
//
// INPUT and OUTPUT hold float32 numbers as they lie in memory; a length that the model leaves open is 1. The calls are
// positions in a table, as in ../onnxruntime_calls.h.
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::{env, fs, process, ptr};

type P = *mut c_void;

#[repr(C)]
struct ApiBase {
    get_api: extern "C" fn(u32) -> *const *const c_void,
    _version: extern "C" fn() -> *const c_char,
}
extern "C" {
    fn OrtGetApiBase() -> *const ApiBase;
}

macro_rules! ort {
    ($api:expr, $at:expr, ($($kind:ty),*) -> $out:ty, $($value:expr),*) => {{
        let call: extern "C" fn($($kind),*) -> $out = unsafe { std::mem::transmute(*$api.add($at)) };
        call($($value),*)
    }};
}

fn main() {
    let words: Vec<String> = env::args().collect();
    if words.len() != 5 {
        eprintln!("usage: run MODEL LIBRARY INPUT OUTPUT");
        process::exit(2);
    }
    let api = unsafe { ((*OrtGetApiBase()).get_api)(17) };
    assert!(!api.is_null(), "onnxruntime is too old");
    let check = |status: P| {
        if !status.is_null() {
            let text = ort!(api, 2, (P) -> *const c_char, status);
            eprintln!("{}", unsafe { CStr::from_ptr(text) }.to_string_lossy());
            process::exit(1);
        }
    };
    let name = |n: usize| CString::new(words[n].as_str()).expect("a path without zeros");
    let (mut environment, mut options, mut session, mut library) =
        (ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let (model, path, label) = (name(1), name(2), CString::new("run").unwrap());
    check(ort!(api, 3, (c_int, *const c_char, *mut P) -> P, 2, label.as_ptr(), &mut environment));
    check(ort!(api, 10, (*mut P) -> P, &mut options));
    check(ort!(api, 29, (P, *const c_char, *mut P) -> P, options, path.as_ptr(), &mut library)); // the sparse operators
    check(ort!(api, 7, (P, *const c_char, P, *mut P) -> P, environment, model.as_ptr(), options, &mut session));

    let (mut allocator, mut info, mut memory) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let (mut input, mut output): (*mut c_char, *mut c_char) = (ptr::null_mut(), ptr::null_mut());
    let (mut tensor, mut rank): (*const c_void, usize) = (ptr::null(), 0);
    check(ort!(api, 78, (*mut P) -> P, &mut allocator));
    check(ort!(api, 36, (P, usize, P, *mut *mut c_char) -> P, session, 0, allocator, &mut input));
    check(ort!(api, 37, (P, usize, P, *mut *mut c_char) -> P, session, 0, allocator, &mut output));
    check(ort!(api, 33, (P, usize, *mut P) -> P, session, 0, &mut info));
    check(ort!(api, 55, (P, *mut *const c_void) -> P, info, &mut tensor));
    check(ort!(api, 61, (*const c_void, *mut usize) -> P, tensor, &mut rank));
    let mut dims = vec![0i64; rank];
    check(ort!(api, 62, (*const c_void, *mut i64, usize) -> P, tensor, dims.as_mut_ptr(), rank));
    dims.iter_mut().for_each(|d| *d = (*d).max(1));

    let bytes = fs::read(&words[3]).expect("the input can be read");
    assert_eq!(bytes.len() as i64, 4 * dims.iter().product::<i64>(), "the input has the wrong size");
    let mut data: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
    let (mut x, mut y, mut shape, mut result) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    check(ort!(api, 69, (c_int, c_int, *mut P) -> P, 1, 0, &mut memory));
    check(ort!(api, 49, (P, P, usize, *const i64, usize, c_int, *mut P) -> P,
        memory, data.as_mut_ptr() as P, bytes.len(), dims.as_ptr(), rank, 1, &mut x));
    let (inputs, outputs, values) = ([input as *const c_char], [output as *const c_char], [x as *const c_void]);
    check(ort!(api, 9, (P, P, *const *const c_char, *const *const c_void, usize, *const *const c_char, usize, *mut P) -> P,
        session, ptr::null_mut(), inputs.as_ptr(), values.as_ptr(), 1, outputs.as_ptr(), 1, &mut y));
    let mut count = 0usize;
    check(ort!(api, 65, (P, *mut P) -> P, y, &mut shape));
    check(ort!(api, 64, (P, *mut usize) -> P, shape, &mut count));
    check(ort!(api, 51, (P, *mut P) -> P, y, &mut result));
    let made = unsafe { std::slice::from_raw_parts(result as *const u8, 4 * count) };
    fs::write(&words[4], made).expect("the output can be written");
}
