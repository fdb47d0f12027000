"""From image and prompt to edited image, over sessions: schedules, plans and their execution. No PyTorch."""
