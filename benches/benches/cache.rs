//! What each chunk costs the CPU: checking its seal, finding its owners, reading its manifest.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use trackbed_cache::{
    Digest, Manifest, Member,
    manifest::{CHUNK_BYTES, Place},
    origin::{ListedEntry, ListedKind, ObjectIdentity, Timestamp},
    placement,
    seal::{BLOCK_BYTES, Seal},
};

/// Files of the manifest that is encoded and decoded.
const FILES: usize = 10_000;

fn seals(criterion: &mut Criterion) {
    let chunk = vec![0x5a; CHUNK_BYTES];
    let seal = Seal::of(&chunk).expect("a chunk of the largest size has a seal");
    let mut group = criterion.benchmark_group("seal");
    group.throughput(Throughput::Bytes(CHUNK_BYTES as u64));
    group.bench_function("make", |bench| bench.iter(|| Seal::of(black_box(&chunk))));
    group.bench_function("verify-chunk", |bench| {
        bench.iter(|| seal.verify(black_box(&chunk)));
    });
    group.throughput(Throughput::Bytes(BLOCK_BYTES as u64));
    group.bench_function("verify-block", |bench| {
        bench.iter(|| seal.verify_blocks(0, black_box(&chunk[..BLOCK_BYTES])));
    });
    group.finish();
}

fn owners(criterion: &mut Criterion) {
    let members: Vec<Member> = (0..1000)
        .map(|index| Member {
            name: format!("node-{index}"),
            control: String::new(),
            weight: 100,
        })
        .collect();
    let chunk = Manifest::build(Place::ANY, listing())
        .expect("the listing is sound")
        .chunk_id(7);
    criterion.bench_function("owners/1000-members", |bench| {
        bench.iter(|| placement::owners(black_box(&members), black_box(&chunk)));
    });
}

fn manifests(criterion: &mut Criterion) {
    let manifest = Manifest::build(Place::ANY, listing()).expect("the listing is sound");
    let (encoded, digest): (Vec<u8>, Digest) = (manifest.encode(), manifest.digest());
    let mut group = criterion.benchmark_group("manifest");
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("encode", |bench| {
        bench.iter(|| black_box(&manifest).encode())
    });
    group.bench_function("decode", |bench| {
        bench.iter(|| Manifest::decode_as(black_box(&encoded), digest));
    });
    group.finish();
}

fn listing() -> Vec<ListedEntry> {
    (0..FILES)
        .map(|index| ListedEntry {
            path: format!("train/{:03}/{index:06}.jpg", index % 100).into_bytes(),
            kind: ListedKind::File {
                size: 100_000,
                identity: ObjectIdentity::Modified(Timestamp::default()),
            },
            mode: 0o644,
            mtime: Timestamp::default(),
        })
        .collect()
}

criterion_group!(benches, seals, owners, manifests);
criterion_main!(benches);
