from apex_memory.cli import main

if __name__ == "__main__":
    main()
