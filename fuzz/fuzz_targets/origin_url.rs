#![no_main]

trackbed_fuzz::fuzz!("origin-url");
