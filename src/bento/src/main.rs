//! The `bento` program: everything lives in the library of the same name, so that tests and tools can use it.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    bento::cli::main()
}
