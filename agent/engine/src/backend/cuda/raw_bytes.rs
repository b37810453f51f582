//! Numbers as the bytes that go to a device and come from it.

/// Numbers of any bits, without padding.
pub trait Number: Copy {}
impl Number for f32 {}
impl Number for u32 {}
impl Number for [u32; 2] {}
impl Number for [u32; 3] {}

pub fn bytes<T: Number>(numbers: &[T]) -> &[u8] {
    // SAFETY: these types have no padding, so every byte of them is one.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

pub fn bytes_mut(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above, and any four bytes are an f32.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}
