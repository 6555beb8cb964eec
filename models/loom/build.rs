//! Declares the `loom` cfg, so that the compiler does not take it for a typing error.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(loom)");
}
