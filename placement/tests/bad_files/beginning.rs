//! The first 24 bytes.

use crate::file::{begin, empty};
use crate::{Case, case};

pub fn cases() -> Vec<Case> {
    [other_files(), versions(), counts(), cut_off()].concat()
}

fn other_files() -> Vec<Case> {
    let begins = [
        ("an HTML page", b"<!doctype html>".as_slice(), "begins with \"<!do\""),
        ("an HTML page in capitals", b"<HTML><BODY>", "begins with \"<HTM\""),
        ("a JSON answer", b"{\"error\":\"not found\"}", "begins with \"{\"er\""),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1", "begins with \"vers\""),
        ("plain text", b"Not Found", "begins with \"Not \""),
        ("GGML of 2022", b"lmgg\x01\0\0\0", "begins with \"lmgg\""),
        ("GGMF", b"fmgg\x01\0\0\0", "begins with \"fmgg\""),
        ("GGJT", b"tjgg\x03\0\0\0", "begins with \"tjgg\""),
        ("an old LoRA adapter", b"algg\x01\0\0\0", "begins with \"algg\""),
        ("the magic in lower case", b"gguf\x03\0\0\0", "begins with \"gguf\""),
        ("the magic backwards", b"FUGG\0\0\0\x03", "begins with \"FUGG\""),
        ("a wrong last letter", b"GGUE\x03\0\0\0", "begins with \"GGUE\""),
        ("a byte order mark", b"\xef\xbb\xbfGGUF", "begins with the bytes ef bb bf 47"),
        ("a line feed before the magic", b"\nGGUF\x03\0\0\0", "begins with the bytes 0a 47 47 55"),
        ("UTF-16", b"G\0G\0U\0F\0", "begins with the bytes 47 00 47 00"),
        ("a zip archive", b"PK\x03\x04", "begins with the bytes 50 4b 03 04"),
        ("gzip", b"\x1f\x8b\x08\0\0\0", "begins with the bytes 1f 8b 08 00"),
        ("zstandard", b"\x28\xb5\x2f\xfd", "begins with the bytes 28 b5 2f fd"),
        ("a pickle", b"\x80\x02}q\0", "begins with the bytes 80 02 7d 71"),
        ("safetensors", b"\x40\x01\0\0\0\0\0\0{\"__metadata__\"", "begins with the bytes 40 01 00 00"),
        ("an ELF program", b"\x7fELF\x02\x01", "begins with the bytes 7f 45 4c 46"),
        ("a PDF", b"%PDF-1.7", "begins with \"%PDF\""),
        ("a PNG", b"\x89PNG\r\n", "begins with the bytes 89 50 4e 47"),
        ("a sparse file's zeros", &[0; 64], "begins with the bytes 00 00 00 00"),
        ("an erased flash block", &[0xff; 64], "begins with the bytes ff ff ff ff"),
    ];
    begins.into_iter().map(|(name, bytes, said)| case(name, empty().here().raw(bytes), said)).collect()
}

fn versions() -> Vec<Case> {
    let with = |version: u32| empty().raw(b"GGUF").here().u32(version).u64(0).u64(0);
    vec![
        case("version 1", with(1), "GGUF version 1"),
        case("version 0", with(0), "GGUF version 0"),
        case("version 4", with(4), "GGUF version 4"),
        case("the largest version", with(u32::MAX), "GGUF version 4294967295"),
        case("version 3, big-endian", with(3u32.swap_bytes()), "is big-endian (version field 0x03000000"),
        case("version 2, big-endian", with(2u32.swap_bytes()), "is big-endian (version field 0x02000000"),
        case("version 1, big-endian", with(1u32.swap_bytes()), "is big-endian (version field 0x01000000"),
        case("a version of text", with(u32::from_le_bytes(*b"v003")), "GGUF version 858796150"),
    ]
}

fn counts() -> Vec<Case> {
    let tensors = |count: u64| empty().raw(b"GGUF").u32(3).here().u64(count).u64(0);
    let keys = |count: u64| empty().raw(b"GGUF").u32(3).u64(0).here().u64(count);
    vec![
        case("one tensor too many", tensors((1 << 20) + 1), "claims 1048577 tensors; at most 1048576"),
        case("2^63 tensors", tensors(1 << 63), "claims 9223372036854775808 tensors"),
        case("tensors counted with -1", tensors(u64::MAX), "claims 18446744073709551615 tensors"),
        case("tensors counted in 32 bits, as in version 1", tensors(291 | 24 << 32), "claims 103079215395 tensors"),
        case("one key too many", keys((1 << 16) + 1), "claims 65537 metadata keys; at most 65536"),
        case("2^32 keys", keys(1 << 32), "claims 4294967296 metadata keys"),
        case("keys counted with -1", keys(u64::MAX), "claims 18446744073709551615 metadata keys"),
        case("more tensors than the file has room for", empty().raw(b"GGUF").u32(3).here().u64(9).u64(0).zeros(100), "")
            .sized(124)
            .said("claims 9 tensors, which take at least 225 bytes, but the file ends at 124"),
        case("more keys than the file has room for", empty().raw(b"GGUF").u32(3).u64(0).here().u64(9).zeros(100), "")
            .sized(124)
            .said("claims 9 metadata keys, which take at least 126 bytes, but the file ends at 124"),
    ]
}

fn cut_off() -> Vec<Case> {
    let whole = begin(1, 1).bytes;
    let names = [
        (0, "an empty file"),
        (1, "one letter"),
        (3, "three letters"),
        (4, "the magic alone"),
        (5, "one byte of the version"),
        (7, "three bytes of the version"),
        (8, "magic and version"),
        (9, "one byte of the count of tensors"),
        (15, "seven bytes of the count of tensors"),
        (16, "no count of keys"),
        (20, "half the count of keys"),
        (23, "all but one of the first 24 bytes"),
    ];
    let cut = |(length, name)| case(name, empty().raw(&whole[..length]).here(), "in the first 24 bytes; more bytes were needed");
    names.into_iter().map(cut).collect()
}
