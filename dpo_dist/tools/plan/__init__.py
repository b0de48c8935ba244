"""What a run file will take, told before it is paid for: memory, hours, money and disk."""
