#![no_main]

trackbed_fuzz::fuzz!("web-index");
