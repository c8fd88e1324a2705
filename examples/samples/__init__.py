"""The sample orchestrations of Azure Durable Functions, written for ray_durable: one module a theme.

Each function is as a user would write it; the tests in tests/cluster/test_samples.py run every one of them on a real
Ray and hold it to its expected result. Begin with `chaining`. The other services that the samples talk to (a phone
network, a bank, an issue tracker) are files in folders; `journal` shows what the activities really did.
"""
