#![no_main]

trackbed_fuzz::fuzz!("seal");
