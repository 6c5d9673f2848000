#![no_main]

trackbed_fuzz::fuzz!("bench-message");
