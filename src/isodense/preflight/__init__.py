"""What cannot fit, said before the first long stage rather than in a later one."""
