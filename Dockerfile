# The page of `hivg demo` as a service: docker build -t hivg . && docker run -p 7860:7860 hivg
# Another model: docker run -p 7860:7860 -v FOLDER:/model:ro hivg --model /model
FROM python:3.11-slim

# Letters other than Latin in labels.
RUN apt-get update && apt-get install -y --no-install-recommends fonts-dejavu-core && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt "/source[demo]"
RUN useradd --create-home --uid 1000 hivg

USER hivg
WORKDIR /home/hivg
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/health', timeout=5)"]
ENTRYPOINT ["hivg", "demo", "--host", "0.0.0.0", "--port", "7860"]
