#![no_main]

trackbed_fuzz::fuzz!("keeper-bits");
