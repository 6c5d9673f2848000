#![no_main]

trackbed_fuzz::fuzz!("mesh-message");
