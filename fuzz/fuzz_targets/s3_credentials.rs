#![no_main]

trackbed_fuzz::fuzz!("s3-credentials");
