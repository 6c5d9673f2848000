#![no_main]

trackbed_fuzz::fuzz!("host-path");
