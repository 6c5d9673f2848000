#![no_main]

trackbed_fuzz::fuzz!("registry-dataset");
