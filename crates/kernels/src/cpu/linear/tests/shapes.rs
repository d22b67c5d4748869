//! Random shapes on random paths: any rows, outputs and columns, every format and instruction set,
//! one to three threads, fast, exact and deterministic. In: seeds. Out: `y` and `dx` within the bounds of the other tests.

use super::*;

/// Whole numbers below `end`, small ones as likely as large ones.
fn below(noise: &mut Noise, end: usize) -> usize {
    let bits = noise.next() % u64::from(usize::BITS - end.leading_zeros() + 1);
    (noise.next() as usize & ((1 << bits) - 1)) % end
}

fn check_shape(cpus: &[Cpu], seed: u64) {
    let mut noise = Noise(seed);
    let format = Format::ALL[noise.next() as usize % Format::ALL.len()];
    let cpu = &cpus[noise.next() as usize % cpus.len()];
    let (rows, out) = (1 + below(&mut noise, 140), 1 + below(&mut noise, 150));
    let cols = match format.block_len() {
        1 => 1 + below(&mut noise, 1500),
        len => len * (1 + below(&mut noise, 1500 / len)),
    };
    let (weight, w) = noise.weight_and_values(format, out, cols);
    forward_error(cpu, &weight, &w, &noise.buf(rows * cols), rows);
    if seed.is_multiple_of(4) {
        check_backward(cpu, &weight, &w, rows, &mut noise);
    }
}

fn check_shapes(seeds: Range<u64>) {
    let cpus: Vec<Cpu> = kernels::names()
        .into_iter()
        .flat_map(|isa| {
            let isa_name = Some(isa.to_owned());
            let pinned =
                CpuOptions { threads: 2, isa: isa_name, deterministic: true, exact: false };
            let pinned = Cpu::new(&pinned).unwrap();
            [cpu(isa, 1, false), cpu(isa, 2, false), cpu(isa, 3, true), pinned]
        })
        .collect();
    for seed in seeds {
        check_shape(&cpus, seed);
    }
}

#[test]
fn random_shapes_agree_with_the_oracle() {
    check_shapes(0..300);
}

/// `cargo test -p puna-kernels --lib ten_thousand -- --ignored`: some minutes.
#[test]
#[ignore = "takes minutes; for a night"]
fn ten_thousand_random_shapes_agree_with_the_oracle() {
    check_shapes(1_000..11_000);
}
