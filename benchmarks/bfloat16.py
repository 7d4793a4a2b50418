"""What bfloat16 weights lose of an Adam step: python benchmarks/bfloat16.py (any machine, half a minute)

The weights have the shape of a matrix of TinySwallow's MLP, 8960 x 1536, and are drawn from N(0, 0.02), the scale of
such models (nothing is downloaded). AdamW is set as in a run. Each weight's gradient is the same at every step, so that
in float32 each step moves each weight by the learning rate.
"""

import torch


def change(dtype: torch.dtype, learning_rate: float, steps: int) -> tuple[float, float]:
    """(share of weights that changed at all, mean change / (learning_rate x steps))."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter((torch.randn(8960, 1536) * 0.02).to(dtype))
    before = weight.detach().double()
    optimizer = torch.optim.AdamW([weight], lr=learning_rate, weight_decay=0)
    gradient = torch.where(torch.rand(weight.shape) < 0.5, -1e-3, 1e-3).to(dtype)
    for _ in range(steps):
        weight.grad = gradient
        optimizer.step()
    difference = (weight.detach().double() - before).abs()
    return (difference > 0).double().mean().item(), difference.mean().item() / (learning_rate * steps)


if __name__ == "__main__":
    print("| learning rate | steps | weights | changed | mean change / (learning rate x steps) |\n" + "|---" * 5 + "|")
    for learning_rate in (1e-6, 1e-5, 2e-5):
        for steps in (1, 10):
            for dtype in (torch.bfloat16, torch.float32):
                share, mean = change(dtype, learning_rate, steps)
                print(f"| {learning_rate:g} | {steps} | {str(dtype)[6:]} | {share:.1%} | {mean:.1%} |", flush=True)
