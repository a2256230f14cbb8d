// Runs a graph exported with `--task instance --size input` (.xml) on a binary PPM (P6) image.
// Prints one instance per line: category, score, box (x1 y1 x2 y2, half-open) and mask area, in
// pixels of the resized image. MASKS.pgm has its size: 0 = nothing, n = the n-th line printed.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <openvino/openvino.hpp>
#include <regex>
#include <stdexcept>
using Error = std::runtime_error;
using namespace ov::preprocess;

static std::vector<uint8_t> read_ppm(const std::string& path, size_t& height, size_t& width) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    size_t largest = 0;
    file >> magic;
    for (size_t* value : {&width, &height, &largest}) {
        while ((file >> std::ws).peek() == '#') file.ignore(1 << 16, '\n');
        file >> *value;
    }
    if (!file || magic != "P6" || largest != 255 || height - 1 > 1 << 15 || width - 1 > 1 << 15)
        throw Error(path + ": not a binary PPM (P6) of 8 bits");
    std::vector<uint8_t> rgb(height * width * 3);
    file.get();  // one white space ends the header
    if (!file.read(reinterpret_cast<char*>(rgb.data()), rgb.size())) throw Error(path + ": cut off");
    return rgb;
}

static std::string fact(const std::string& facts, const std::string& pattern) {
    std::smatch found;
    if (!std::regex_search(facts, found, std::regex(pattern))) throw Error("the model's facts lack " + pattern);
    return found[1];
}

static void run(char** argv, float threshold) {
    ov::Core core;
    auto model = core.read_model(argv[1]);
    const auto facts = model->get_rt_info<std::string>("unisolo");
    const std::regex quoted("\"name\": \"((?:[^\"\\\\]|\\\\.)*)\"");
    std::vector<std::string> names;  // by label
    const auto categories = facts.begin() + facts.find("\"categories\"");
    for (std::sregex_iterator at(categories, facts.end(), quoted), end; at != end; ++at) names.push_back((*at)[1]);
    // The short side becomes image_size, unless the long side would exceed max_size; then the image is
    // padded at the bottom and right to multiples of 32, or to the size that the graph is fixed to.
    size_t tall = 0, wide = 0;
    auto rgb = read_ppm(argv[2], tall, wide);
    const double scale = std::min(std::stod(fact(facts, "\"image_size\": (\\d+)")) / std::min(tall, wide),
                                  std::stod(fact(facts, "\"max_size\": (\\d+)")) / std::max(tall, wide));
    const int height = std::max(int(tall * scale + 0.5), 1);
    const int width = std::max(int(wide * scale + 0.5), 1);
    const auto shape = model->input("images").get_partial_shape();
    const int rows = shape[2].is_static() ? shape[2].get_length() : (height + 31) / 32 * 32;
    const int columns = shape[3].is_static() ? shape[3].get_length() : (width + 31) / 32 * 32;
    if (rows < height || columns < width) throw Error("the image is larger than the graph's fixed size");
    // Resizing with antialias (or as OpenCV does, for weights trained so) and padding run in the graph.
    const auto way = fact(facts, "\"resize\": \"(\\w+)\"") == "opencv" ? ResizeAlgorithm::RESIZE_LINEAR
                                                                   : ResizeAlgorithm::RESIZE_BILINEAR_PILLOW;
    const ov::Shape pixels{1, tall, wide, 3};
    PrePostProcessor steps(model);
    auto& input = steps.input("images");
    input.tensor().set_element_type(ov::element::u8).set_layout("NHWC").set_shape(pixels);
    input.model().set_layout("NCHW");
    input.preprocess().resize(way, height, width).convert_element_type(ov::element::f32);
    input.preprocess().pad({0, 0, 0, 0}, {0, rows - height, columns - width, 0}, 0.0f, PaddingMode::CONSTANT);
    auto request = core.compile_model(steps.build(), "CPU", ov::hint::inference_precision(ov::element::f32))
                       .create_infer_request();
    int64_t size[] = {height, width};
    request.set_tensor("images", {ov::element::u8, pixels, rgb.data()});
    request.set_tensor("image_sizes", {ov::element::i64, {1, 2}, size});
    request.infer();
    const auto* scores = request.get_tensor("scores").data<float>();
    const auto* labels = request.get_tensor("labels").data<int64_t>();
    const auto* box = request.get_tensor("boxes").data<float>();
    const auto* mask = static_cast<const uint8_t*>(request.get_tensor("masks").data());  // a byte per pixel
    std::vector<uint8_t> drawn(size_t(height) * width);
    for (int k = 0, line = 1; k < *request.get_tensor("count").data<int64_t>() && scores[k] >= threshold; ++k) {
        int area = 0;
        for (int n = 0; n < height * width; ++n) {
            const bool inside = mask[(size_t(k) * rows + n / width) * columns + n % width];
            area += inside;
            if (inside && !drawn[n]) drawn[n] = std::min(line, 255);  // the best instance keeps a pixel
        }
        if (area == 0) continue;  // smaller than a pixel
        std::printf("%s %.6f %g %g %g %g %d\n", names.at(labels[k]).c_str(), scores[k], box[4 * k], box[4 * k + 1],
                    box[4 * k + 2], box[4 * k + 3], area);
        ++line;
    }
    std::ofstream out(argv[3], std::ios::binary);
    out << "P5\n" << width << ' ' << height << "\n255\n";
    if (!out.write(reinterpret_cast<const char*>(drawn.data()), drawn.size()).flush()) throw Error("cannot write");
}

int main(int argc, char** argv) try {
    if (argc < 4 || argc > 5) throw Error("usage: unisolo_deploy MODEL.xml IMAGE.ppm MASKS.pgm [SCORE, 0.3]");
    run(argv, argc == 5 ? std::stof(argv[4]) : 0.3f);
} catch (const std::exception& error) {
    return std::fprintf(stderr, "error: %s\n", error.what()), 2;
}
