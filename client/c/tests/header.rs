//! `fdstash.h` is what cbindgen makes of the source.

use std::{env, fs, path::Path};

#[test]
fn the_header_is_what_the_source_says() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut made = Vec::new();
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(here.join("src/lib.rs"))
        .generate()
        .unwrap()
        .write(&mut made);
    let made = String::from_utf8(made).unwrap();

    let header = here.join("fdstash.h");
    if env::var_os("FDSTASH_WRITE_HEADER").is_some() {
        fs::write(&header, &made).unwrap();
    }

    assert_eq!(fs::read_to_string(header).unwrap(), made, "renew it with `make header`");
}
