//! Decode and prefill of a model directory on one adapter, and where a decode step's time goes.
//!
//!     cargo bench --bench decode -- MODEL_DIR [DEVICE] [STEPS]
//!
//! The split runs each kernel of a step on its own, many times, and divides: launches overlap in a real step, so the
//! parts need not add up to it.
use secateur::Dtype;
use std::sync::Arc;
use std::time::Instant;

use pollster::block_on;
use secateur::device::ComputeDevice;
use secateur::expert::bench;
use secateur::expert::cache::{CacheShape, KvCache};
use secateur::expert::kernels::{
    self, AttentionSpec, InPlace, LayerSpec, LinearSpec, Mode, NormSpec, RopeAppendSpec, readback,
};
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::Decoder;
use secateur::expert::sampling::Sampler;
use secateur::expert::weights::{ModelSource, Weights};
use secateur::sampling::Sampling;

const PROMPT: usize = 128;

fn main() -> secateur::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(dir) = args.first() else {
        println!("skipped: no model directory given (cargo bench --bench decode -- MODEL_DIR [DEVICE] [STEPS])");
        return Ok(());
    };
    let device = block_on(ComputeDevice::open(args.get(1).map_or("auto", String::as_str)))?;
    let steps: usize = args.get(2).and_then(|s| s.parse().ok()).unwrap_or(64);
    let source = ModelSource::open(dir)?;
    let config = ModelConfig::load(&source)?;
    let weights = Weights::open(&source)?;
    let copied = block_on(bench::copy_bandwidth(&device, 3))?.bytes_per_second.median;
    // First as the device is tuned, then with norms the other way, then both again: another load of the machine must
    // not decide which is faster.
    for turn in 0..4 {
        let mut device = device.clone();
        device.tuning.norm_in_product ^= turn % 2 == 1;
        measure(&config, &weights, &device, steps, copied)?;
    }
    split(&config, &device)
}

/// Measures prefill and decoding.
fn measure(
    config: &ModelConfig,
    weights: &Weights,
    device: &ComputeDevice,
    steps: usize,
    copied: f64,
) -> secateur::Result<()> {
    let model = Arc::new(Decoder::load(config, weights, 4096, None, device, &mut |_, _| ())?);
    println!("{}; weights {:.1} MB", device.info.line(), model.weight_bytes() as f64 / 1e6);
    let norms = if device.tuning.norm_in_product { "in the products" } else { "by themselves" };
    let lengths = bench::Lengths { prompt: PROMPT, decode: steps, sequences: 1 };
    let m = block_on(bench::measure(&model, Dtype::F16, lengths, 3, true, &mut || ()))?;
    let (prefill, decode) = (m.prefill_tokens_per_second, m.decode_tokens_per_second);
    println!("norms {norms}: {:.0} launches a step", m.launches_per_step);
    println!("prefill {:.1} tok/s ({:.1} to {:.1})", prefill.median, prefill.min, prefill.max);
    println!(
        "decode {:.2} tok/s ({:.2} to {:.2}), {:.2} ms a token, {:.2} GB/s of the {:.2} GB/s a copy reaches",
        decode.median,
        decode.min,
        decode.max,
        1e3 / decode.median,
        m.decode_bytes_per_second() / 1e9,
        copied / 1e9
    );
    Ok(())
}

/// Times the kernels of a decode step alone.
fn split(c: &ModelConfig, device: &ComputeDevice) -> secateur::Result<()> {
    let (h, inter, d) = (c.hidden_size, c.intermediate_size, c.head_dim);
    let (heads, kv_heads, layers) = (c.num_heads, c.num_kv_heads, c.num_layers);
    let burn = &device.burn;
    let floats = |rows: usize, cols: usize| kernels::f32_tensor(vec![0.01; rows * cols], [rows, cols], burn);
    let weights = |rows: usize, cols: usize| kernels::u32_tensor(vec![0x2c00_2c00; rows * cols / 2], burn);
    let fence_tensor = kernels::u32_tensor(vec![0; 4], burn);
    let bias = kernels::f32_tensor(vec![0.0; 4], [4], burn);
    let mut total = 0.0;
    let mut time = |name: &str, times: usize, bytes: usize, mut run: Box<dyn FnMut() + '_>| -> secateur::Result<()> {
        let fence = || block_on(readback::read_u32(&[&fence_tensor])).map(|_| ());
        run();
        fence()?;
        let rounds = 30;
        let begun = Instant::now();
        (0..rounds).for_each(|_| run());
        fence()?;
        let each = begun.elapsed().as_secs_f64() / rounds as f64;
        total += each * times as f64;
        println!(
            "  {name:<28} {:>8.1} us x {times:<3} = {:>7.2} ms   {:>6.2} GB/s",
            each * 1e6,
            each * times as f64 * 1e3,
            bytes as f64 / each / 1e9
        );
        Ok(())
    };
    let fused = device.tuning.norm_in_product;
    let gains = kernels::f32_tensor(vec![1.0; h], [h], burn);
    let mut linear = |name: &str, rows: usize, cols: usize, mode: Mode, times: usize| {
        let (w, x) = (weights(rows, cols), floats(1, cols));
        let out_cols = if mode == Mode::SwiGlu { rows / 2 } else { rows };
        let mut out = InPlace::new(floats(1, out_cols));
        let spec = LinearSpec {
            dtype: Dtype::F16,
            mode,
            has_bias: false,
            rows,
            cols,
            shard_first_row: 0,
            out_stride: out_cols,
            n: 1,
            // The products that do not add read the residual stream.
            norm: (fused && mode != Mode::Add).then_some(NormSpec { n: 1, first_row: 0, cols, eps: 1e-6 }),
            tuning: device.tuning,
        };
        let (gains, bias) = (&gains, &bias);
        time(
            name,
            times,
            rows * cols * 2,
            Box::new(move || out.update(|out| ((), kernels::linear(&w, &x, gains, bias, out, spec)))),
        )
    };
    linear("matvec qkv", (heads + 2 * kv_heads) * d, h, Mode::Store, layers)?;
    linear("matvec o", h, heads * d, Mode::Add, layers)?;
    linear("matvec gate_up (SwiGLU)", 2 * inter, h, Mode::SwiGlu, layers)?;
    linear("matvec down", h, inter, Mode::Add, layers)?;
    linear("matvec head", c.vocab_size, h, Mode::Store, 1)?;
    let x = floats(1, h);
    let norm = NormSpec { n: 1, first_row: 0, cols: h, eps: 1e-6 };
    let times = if fused { 0 } else { 2 * layers + 1 };
    time("rms_norm", times, h * 8, Box::new(|| drop(kernels::rms_norm(&x, &gains, norm))))?;
    let mut cache = KvCache::new(CacheShape::new(c, Dtype::F16, 1, 64)?, device);
    let rope = kernels::f32_tensor(vec![0.5; 4096 * d], [4096 * d], burn);
    let layer = |cache: &KvCache| {
        let (dtype, layer_table_offset) = (Dtype::F16, cache.table_offset(0));
        LayerSpec { dtype, d, heads, kv_heads, layer_table_offset, positions: 4096, compact: false }
    };
    for length in [128usize, 1024] {
        cache.clear(0)?;
        cache.reserve(&[0], length + 64)?;
        cache.advance(0, length, 0);
        let q = floats(1, heads * d);
        let (row_seq_offset, most_seen) = (cache.select(&[0]), length + 1);
        let spec = AttentionSpec {
            layer: layer(&cache),
            n: 1,
            chunk: 1,
            separate: false,
            row_seq_offset,
            most_seen,
            already_cached: 0,
            tuning: device.tuning,
        };
        let bytes = length * cache.shape().slot_bytes();
        let times = if length == 128 { layers } else { 0 };
        let run = || drop(kernels::attention(&q, cache.layer(0), cache.state(), &rope, spec));
        time(&format!("attention over {length}"), times, bytes, Box::new(run))?;
    }
    let unread = kernels::f32_tensor(vec![0.0; 4], [4], burn);
    let qkv = floats(1, (heads + 2 * kv_heads) * d);
    let row_seq_offset = cache.select(&[0]);
    let append = RopeAppendSpec { layer: layer(&cache), n: 1, chunk: 1, row_seq_offset, norm: None };
    let mut kv = InPlace::new(kernels::u32_tensor(vec![0; 2048 * cache.shape().slot_bytes() / 4], burn));
    let run = || {
        kv.update(|kv| kernels::rope_append(qkv.clone(), &rope, cache.state(), kv, &unread, append));
    };
    time("rope_append", layers, (heads + 2 * kv_heads) * d * 8, Box::new(run))?;
    let logits = floats(1, c.vocab_size);
    let mut sampler = Sampler::new(c.vocab_size, &mut cache, device);
    for (name, sampling) in [
        ("sample, greedy", Sampling::GREEDY),
        ("sample, temperature", Sampling { temperature: 0.6, top_p: 0.95, ..Sampling::GREEDY }),
    ] {
        sampler.set(&mut cache, 0, &sampling, 0, &[]);
        let times = sampling.is_greedy() as usize;
        time(name, times, c.vocab_size * 4, Box::new(|| sampler.sample(&logits, &mut cache, &[0], 0)))?;
    }
    println!("  sum {:.2} ms", total * 1e3);
    Ok(())
}
