#![no_main]

trackbed_fuzz::fuzz!("volume-record");
