"""edgewise: which prompts deserve rollouts next?"""
