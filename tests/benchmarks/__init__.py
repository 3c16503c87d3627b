"""What analyze costs, on the real SmolLM2-135M: `make bench`. Numbers to look at; no test asserts them."""
