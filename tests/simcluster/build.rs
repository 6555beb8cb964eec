//! As tests/sim: lets the replaced functions of the C library be found by name at run time.

fn main() {
    for name in ["getrandom", "clock_gettime"] {
        println!("cargo:rustc-link-arg=-Wl,--export-dynamic-symbol={name}");
    }
}
